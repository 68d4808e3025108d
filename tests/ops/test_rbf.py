"""RBF mixing, exact and by random features."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chiaroscuro.ops import (
    Chosen,
    median_bandwidth,
    random_frequencies,
    rbf_feature_mix,
    rbf_features,
    rbf_kernel,
    rbf_mix,
    reference,
)

BOTH = pytest.mark.parametrize("causal", [True, False])


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def naive_feature_mix(phi, v, causal):
    """From the estimated kernel, a T x T matrix, with its exact diagonal."""
    kernel = phi @ phi.mT
    kernel = kernel - torch.diag_embed(kernel.diagonal(dim1=-2, dim2=-1) - 1)
    if causal:
        kernel = kernel.tril()
    return kernel @ v / kernel.sum(-1, keepdim=True)


@BOTH
@pytest.mark.parametrize("T", [1, 2, 7])
def test_exact_mixing_by_definition_with_gradients(T, causal):
    x, v = normal(2, T, 3).requires_grad_(), normal(2, T, 2).requires_grad_()
    expected = torch.stack([reference.rbf_mix(x[b], v[b], 0.3, causal) for b in range(2)])
    torch.testing.assert_close(rbf_mix(x, v, 0.3, causal), expected, atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(lambda x, v: rbf_mix(x, v, 0.3, causal), (x, v))


@BOTH
def test_random_features_come_closer_to_the_kernel_the_more_there_are(causal):
    x, v = normal(2, 40, 16), normal(2, 40, 3)
    gamma = median_bandwidth(x)
    exact = rbf_mix(x, v, gamma, causal)
    errors = []
    for F in (16, 256, 4096, 65536):
        phi = rbf_features(x, random_frequencies(F, 16), gamma)
        errors.append(float((rbf_feature_mix(phi, v, causal)[0] - exact).abs().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 32  # a 64th is expected of 4096 times as many


@BOTH
@given(B=st.integers(1, 3), T=st.integers(1, 140), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_chunks_give_what_the_whole_matrix_gives_for_all_tokens_and_for_chosen_ones(causal, B, T, share, seed):
    torch.manual_seed(seed)
    x, v, mask = normal(B, T, 5), normal(B, T, 3), torch.rand(B, T) < share
    phi = rbf_features(x, random_frequencies(12, 5), 0.2)
    expected = naive_feature_mix(phi, v, causal)
    torch.testing.assert_close(rbf_feature_mix(phi, v, causal)[0], expected, atol=1e-10, rtol=0)
    rows, _ = rbf_feature_mix(phi, v, causal, chosen=Chosen(mask))
    torch.testing.assert_close(rows, expected[mask], atol=1e-10, rtol=0)


@BOTH
def test_derivatives_of_the_features_and_their_mixing(causal):
    x, v = (0.5 * normal(1, 5, 3)).requires_grad_(), normal(1, 5, 2).requires_grad_()
    gamma = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    frequencies = random_frequencies(6, 3).double()
    assert torch.autograd.gradcheck(
        lambda x, v, gamma: rbf_feature_mix(rbf_features(x, frequencies, gamma), v, causal)[0], (x, v, gamma)
    )


@given(cuts=st.lists(st.integers(1, 80), min_size=1, max_size=4))
def test_going_on_from_the_running_sum_gives_the_whole(cuts):
    T = sum(cuts)
    phi, v = rbf_features(normal(2, T, 4), random_frequencies(8, 4), 0.2), normal(2, T, 3)
    whole, total = rbf_feature_mix(phi, v)
    pieces, state = [], None
    for phi_piece, v_piece in zip(phi.split(cuts, 1), v.split(cuts, 1), strict=True):
        piece, state = rbf_feature_mix(phi_piece, v_piece, before_BFU=state)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-10, rtol=0)
    torch.testing.assert_close(state, total, atol=1e-10, rtol=0)


@BOTH
def test_padding_reaches_no_other_token(causal):
    x, v = normal(2, 9, 4), normal(2, 9, 3)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[0, :3], valid[1, 6:] = False, False
    phi = rbf_features(x, random_frequencies(8, 4), 0.2)
    mixed, _ = rbf_feature_mix(phi, v, causal, valid)
    exact = rbf_mix(x, v, 0.2, causal, valid)
    for b, kept in enumerate(valid):
        torch.testing.assert_close(mixed[b][kept], naive_feature_mix(phi[b][kept], v[b][kept], causal))
        torch.testing.assert_close(exact[b][kept], rbf_mix(x[b : b + 1, kept], v[b : b + 1, kept], 0.2, causal)[0])


@BOTH
@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0, 1e3, 1e15])
def test_the_normaliser_never_vanishes_and_nothing_overflows(causal, size):
    x, v = torch.randn(2, 70, 32) * size, torch.randn(2, 70, 3)
    mixed, _ = rbf_feature_mix(rbf_features(x, random_frequencies(64, 32), 1 / 64), v, causal)
    assert torch.isfinite(mixed).all()
    assert mixed.abs().max() <= v.abs().max() * (1 + 1e-4)


def test_frequencies_are_gaussian_and_orthogonal_within_a_group():
    draws = torch.stack([random_frequencies(8, 8) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), torch.zeros(8, 8), atol=0.08, rtol=0)
    torch.testing.assert_close(draws.var(0), torch.ones(8, 8), atol=0.12, rtol=0)
    products = draws @ draws.mT
    assert (products - torch.diag_embed(products.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-4
    assert random_frequencies(21, 8).shape == (21, 8)


def test_typical_tokens_weigh_each_other_by_one_over_e_under_the_median_heuristic():
    x = normal(1, 200, 64)
    gamma = median_bandwidth(x)
    off_diagonal = rbf_kernel(x, gamma)[0][~torch.eye(200, dtype=torch.bool)]
    assert float(off_diagonal.median()) == pytest.approx(1 / torch.e, rel=1e-3)
    assert float(gamma) == pytest.approx(1 / (2 * 64), rel=0.1)
    assert float(median_bandwidth(torch.ones(5, 8))) == pytest.approx(1 / 16)


def test_autocast_leaves_the_features_and_their_sums_alone():
    torch.manual_seed(0)
    x, v, frequencies = torch.randn(2, 90, 16), torch.randn(2, 90, 4), random_frequencies(32, 16)

    def mixed():
        return rbf_feature_mix(rbf_features(x, frequencies, 0.03), v)[0]

    exact = mixed()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixed(), exact)


def test_only_causal_mixing_can_go_on_and_nan_is_refused():
    phi, v = torch.rand(1, 3, 4), torch.rand(1, 3, 2)
    with pytest.raises(ValueError, match="only causal"):
        rbf_feature_mix(phi, v, causal=False, before_BFU=torch.zeros(1, 4, 3))
    for mix in (lambda: rbf_feature_mix(phi * float("nan"), v), lambda: rbf_mix(phi, v * float("nan"), 1.0)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            mix()


def test_the_running_sum_of_a_long_bfloat16_text_loses_nothing():
    """In bfloat16 itself the normaliser, the sum's last column, would stop growing after some hundred tokens."""
    x, v = torch.randn(1, 1500, 16).bfloat16(), torch.randn(1, 1500, 3).bfloat16()
    phi, state = rbf_features(x, random_frequencies(8, 16), 1 / 32), None
    for t in range(1500):
        _, state = rbf_feature_mix(phi[:, t : t + 1], v[:, t : t + 1], before_BFU=state)
    assert state.dtype == torch.float32
    torch.testing.assert_close(state[0, :, -1].double(), phi.double().sum(1)[0], atol=0, rtol=1e-3)
