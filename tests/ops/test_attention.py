"""Attention of chosen queries against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import assert_same_with_gradients

from chiaroscuro.ops import attention_cpu, chosen_attention, packed_attention
from chiaroscuro.ops.reference import attention


def expected_attention(q, k, v, visible, valid=None):
    """The definition, a row and a head at a time."""
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        seen = [[j for j in range(int(n)) if valid is None or valid[b, j]] for n in visible[b]]
        for n in range(q.shape[1]):
            out[b, n] = attention(q[b, n], k[b, n], v[b, n], seen)
    return out


def expected_at_once(q, k, v, visible, valid=None):
    """The same as products of whole matrices, for lengths at which the definition takes half a minute."""
    sees = torch.arange(k.shape[2]) < visible[..., None]
    sees = (sees if valid is None else sees & valid[:, None])[:, None]
    scores = (q @ k.mT / q.shape[3] ** 0.5).masked_fill(~sees, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v


def inputs(B, N, Q, K, H, seed=0):
    torch.manual_seed(seed)
    q, k, v = (torch.randn(B, N, size, H, dtype=torch.float64, requires_grad=True) for size in (Q, K, K))
    visible = torch.randint(0, K + 1, (B, Q)).sort(-1).values
    return q, k, v, visible


@given(
    B=st.integers(1, 3),
    N=st.integers(1, 2),
    Q=st.integers(1, 40),
    K=st.integers(1, 45),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_by_definition(B, N, Q, K, padded, seed):
    q, k, v, visible = inputs(B, N, Q, K, 4, seed)
    valid = torch.rand(B, K) < 0.7 if padded else None
    if visible.any():
        assert_as_defined(q, k, v, visible, valid)
    else:
        assert not chosen_attention(q, k, v, visible, valid).any()


def assert_as_defined(q, k, v, visible, valid, definition=expected_attention):
    out, expected = chosen_attention(q, k, v, visible, valid), definition(q, k, v, visible, valid)
    assert_same_with_gradients(out, expected, (q, k, v))


@given(
    B=st.integers(1, 3),
    Q=st.integers(1, 60),
    K=st.integers(1, 70),
    worth=st.sampled_from([1, 20]),
    low=st.integers(1, 9),
    lowest=st.integers(1, 9),
    tall=st.integers(1, 40),
    aligned=st.sampled_from([1, 4]),
    apart=st.booleans(),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_way_to_cut_the_staircase(B, Q, K, worth, low, lowest, tall, aligned, apart, padded, seed):
    q, k, v, visible = inputs(B, 2, Q, K, 4, seed)
    valid = torch.rand(B, K) < 0.7 if padded else None
    visible = visible * (torch.rand(B, Q) < 0.9)  # padding queries anywhere
    if not visible.any():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_cpu, "WORTH", worth)
        patch.setattr(attention_cpu, "LOW", low)
        patch.setattr(attention_cpu, "LOWEST", lowest)
        patch.setattr(attention_cpu, "TALL", tall)
        patch.setattr(attention_cpu, "ALIGNED", aligned)
        patch.setattr(attention_cpu, "ROW_BY_ROW", 1 if apart else 1000)
        assert_as_defined(q, k, v, visible, valid)
        seen = torch.zeros(B, Q, K, dtype=torch.int)
        for rows in attention_cpu.cut_together(visible):
            for queries, keys, _, _ in attention_cpu.tiles(visible[rows], K):
                seen[rows, queries, keys] += 1
        assert seen.max() == 1, "a pair is computed twice"
        assert seen[torch.arange(K) < visible[..., None]].all(), "a pair that is seen is left out"


@pytest.mark.parametrize(
    ("Q", "at_most"), [(128, 1.55), (191, 1.55), (256, 1.65), (383, 1.4), (512, 1.35), (2048, 1.1)]
)
def test_not_much_is_computed_in_vain(Q, at_most):
    visible = 2 * torch.arange(Q)[None] + 1
    computed = sum(
        (queries.stop - queries.start) * (keys.stop - keys.start)
        for queries, keys, _, _ in attention_cpu.tiles(visible, 2 * Q)
    )
    assert computed <= at_most * int(visible.sum())


def test_queries_that_see_the_same_need_no_mask():
    tiles = [*attention_cpu.tiles(torch.full((1, 2000), 901), 901)]
    assert len(tiles) == 3
    assert not any(tile.masked for tile in tiles)


@pytest.mark.parametrize("padded", [False, True])
def test_at_lengths_that_are_cut_in_earnest(padded):
    B, Q, K = 2, 700, 900
    q, k, v, _ = inputs(B, 1, Q, K, 4)
    visible = torch.stack([torch.randperm(K)[:Q].sort().values + 1 for _ in range(B)])
    visible[1, 300:] = 0
    valid = torch.rand(B, K) < 0.9 if padded else None
    torch.testing.assert_close(
        expected_at_once(q, k, v, visible, valid)[:, :, ::50],
        expected_attention(q[:, :, ::50], k, v, visible[:, ::50], valid),
        atol=1e-12,
        rtol=0,
    )
    assert_as_defined(q, k, v, visible, valid, expected_at_once)
    exact = int(visible.sum())
    assert exact <= attention_cpu.computed_pairs(visible, K) <= 1.01 * exact


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_lower_precision(dtype, tolerance):
    q, k, v, visible = inputs(1, 2, 300, 400, 8)
    valid = torch.rand(1, 400) < 0.9
    expected = chosen_attention(q, k, v, visible, valid)
    out = chosen_attention(*(x.to(dtype) for x in (q, k, v)), visible, valid)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


def test_with_dropout_the_mean_is_the_attention_without():
    q, k, v, visible = inputs(1, 1, 5, 6, 4)
    draws = torch.stack([chosen_attention(q, k, v, visible, dropout=0.3) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), chosen_attention(q, k, v, visible), atol=0.1, rtol=0)
    assert (draws.std(0)[0, :, visible[0] > 0] > 0.01).all()


def test_packed_attention_drops_anew_each_time():
    q, k, v, _ = inputs(2, 2, 9, 9, 4)
    first, second = (packed_attention(q, k, v, [9, 9], dropout=0.3) for _ in range(2))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("size", [1, 40, 300])
def test_packed_rows_attend_among_themselves(size):
    q, k, v, _ = inputs(3, 2, size, size, 4)
    counts = [size, size // 2, 0]
    out = packed_attention(q, k, v, counts)
    visible = (torch.arange(size) + 1) * (torch.arange(size) < torch.tensor(counts)[:, None])
    filled = (visible > 0)[:, None, :, None]
    torch.testing.assert_close(out * filled, expected_attention(q, k, v, visible), atol=1e-10, rtol=0)


def test_torch_compile_takes_it_whole():
    q, k, v, visible = inputs(2, 2, 150, 160, 4)
    compiled = torch.compile(chosen_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v, visible), chosen_attention(q, k, v, visible))


def test_many_blocks_and_padding_queries_at_the_end_of_a_row():
    q, k, v, visible = inputs(2, 1, 150, 160, 4)
    visible[0, 100:] = 0
    torch.testing.assert_close(
        chosen_attention(q, k, v, visible), expected_attention(q, k, v, visible), atol=1e-10, rtol=0
    )


def test_a_query_that_sees_nothing_gives_zeros_and_finite_gradients():
    q, k, v, visible = inputs(1, 2, 3, 4, 4)
    valid = torch.tensor([[False, False, True, True]])
    out = chosen_attention(q, k, v, torch.tensor([[0, 2, 3]]), valid)
    assert not out[:, :, :2].any()
    assert out[:, :, 2].any()
    out.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


def test_no_query_gives_no_output():
    q, k, v, _ = inputs(2, 2, 1, 3, 4)
    assert chosen_attention(q[:, :, :0], k, v, torch.zeros(2, 0, dtype=torch.long)).shape == (2, 2, 0, 4)


def test_what_does_not_fit_is_refused():
    q, k, v, visible = inputs(2, 2, 3, 5, 4)
    with pytest.raises(ValueError, match="do not fit together"):
        chosen_attention(q, k, v[:, :, 1:], visible)
    with pytest.raises(ValueError, match="do not fit together"):
        chosen_attention(q, k, v, visible[:, 1:])
    with pytest.raises(ValueError, match="NaN or infinity"):
        chosen_attention(q * float("nan"), k, v, visible)


@pytest.mark.parametrize("amiss", ["more visible than there are keys", "key mask of another length"])
def test_counts_and_masks_that_do_not_fit_the_keys_are_refused(amiss):
    q, k, v, visible = inputs(1, 1, 3, 3, 4)
    valid = torch.ones(1, 2 if amiss.startswith("key mask") else 3, dtype=torch.bool)
    visible[0, 2] = 3 if amiss.startswith("key mask") else 4
    with pytest.raises(ValueError, match="do not fit together"):
        chosen_attention(q, k, v, visible, valid)
