"""The fast transform against its matrix."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chiaroscuro.ops import dct, filtered_idct, idct, packed_dct, spectral_entropy
from chiaroscuro.ops import pieces as ops_pieces
from chiaroscuro.ops.reference import dct_matrix

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 64, 255, 256]


@pytest.mark.parametrize("D", SIZES)
def test_both_transforms_are_the_orthonormal_matrix_and_its_transpose(D):
    x, C = torch.randn(3, 2, D, dtype=torch.float64), dct_matrix(D)
    torch.testing.assert_close(C @ C.T, torch.eye(D, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(dct(x), x @ C.T, atol=1e-12, rtol=0)
    torch.testing.assert_close(idct(x), x @ C, atol=1e-12, rtol=0)


@pytest.mark.parametrize("D", [1, 2, 5, 8])
@pytest.mark.parametrize("transform", [dct, idct])
def test_first_and_second_derivatives(D, transform):
    x = torch.randn(2, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(transform, x)
    assert torch.autograd.gradgradcheck(lambda x: transform(x).square(), x)


@pytest.mark.parametrize("D", SIZES)
def test_a_packed_spectrum_holds_the_same_coefficients_in_another_order(D):
    x, w = torch.randn(3, D, dtype=torch.float64), torch.randn(D, dtype=torch.float64)
    X, packed = dct(x), packed_dct(x)
    torch.testing.assert_close(packed.square().sum(-1), X.square().sum(-1), atol=1e-12, rtol=0)
    assert int((packed[0] != 0).sum()) == D
    torch.testing.assert_close(filtered_idct(packed, w), idct(X * w), atol=1e-12, rtol=0)
    torch.testing.assert_close(filtered_idct(packed + (packed == 0), w), idct(X * w), atol=1e-12, rtol=0)  # empty slots
    for vector, spectrum in zip(x, packed, strict=True):  # one vector alone is transformed in another way
        torch.testing.assert_close(packed_dct(vector), spectrum, atol=1e-12, rtol=0)
        torch.testing.assert_close(filtered_idct(spectrum, w), idct(dct(vector) * w), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(1,), (2,), (5,), (2, 8)])
def test_derivatives_of_the_packed_transforms(shape):
    x, w = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in (shape, shape[-1:]))
    packed = packed_dct(x).detach().requires_grad_()
    for transform, at in ((packed_dct, (x,)), (filtered_idct, (packed, w))):
        assert torch.autograd.gradcheck(transform, at)
        assert torch.autograd.gradgradcheck(lambda *xs, transform=transform: transform(*xs).square(), at)


@pytest.mark.parametrize("chosen", [[], [4], [0, 2, 5]])
def test_some_rows_of_a_packed_spectrum(chosen):
    X, w = packed_dct(torch.randn(2, 3, 5, dtype=torch.float64)).requires_grad_(), torch.randn(5, dtype=torch.float64)
    w.requires_grad_()
    chosen_M = torch.tensor(chosen, dtype=torch.long)
    torch.testing.assert_close(filtered_idct(X, w, chosen_M), filtered_idct(X, w).flatten(0, 1)[chosen_M])
    assert torch.autograd.gradcheck(lambda X, w: filtered_idct(X, w, chosen_M), (X, w))
    assert torch.autograd.gradgradcheck(lambda X, w: filtered_idct(X, w, chosen_M).square(), (X, w))


def test_transforms_of_more_vectors_than_are_taken_at_a_time(monkeypatch):
    x, w = torch.randn(2, 50, 7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    chosen_M = torch.arange(0, 100, 2)

    def transforms():
        X = packed_dct(x)
        return X, filtered_idct(X, w), filtered_idct(X, w, chosen_M), spectral_entropy(x)

    whole = transforms()
    monkeypatch.setattr(ops_pieces, "AT_A_TIME", 30)
    assert all(map(torch.equal, whole, transforms()))


def test_a_packed_spectrum_of_other_vectors_is_refused():
    with pytest.raises(ValueError, match="8 channels have 10 slots"):
        filtered_idct(torch.ones(3, 8), torch.ones(8))


@given(shape=st.lists(st.integers(1, 4), min_size=0, max_size=3), D=st.integers(1, 70))
def test_there_and_back_keeps_the_vector_and_its_length(shape, D):
    x = torch.randn(*shape, D, dtype=torch.float64)
    torch.testing.assert_close(idct(dct(x)), x, atol=1e-12, rtol=0)
    torch.testing.assert_close(dct(x).norm(dim=-1), x.norm(dim=-1), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_lower_precision_is_computed_in_float32_and_returned_as_given(dtype, tolerance):
    x = torch.randn(4, 96).to(dtype)
    for transform in (dct, idct):
        result = transform(x)
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), transform(x.double()), atol=tolerance, rtol=0)
        assert torch.equal(result, transform(x.float()).to(dtype))


@pytest.mark.parametrize("transform", [dct, idct])
def test_no_tokens_give_no_tokens_and_keep_the_graph(transform):
    x = torch.zeros(0, 8, requires_grad=True)
    result = transform(x)
    assert result.shape == (0, 8)
    result.sum().backward()
    assert x.grad.shape == (0, 8)


@pytest.mark.parametrize(
    ("x", "complaint"),
    [
        (torch.ones(4, dtype=torch.long), "floating-point"),
        (torch.ones(4, dtype=torch.complex64), "floating-point"),
        (torch.ones(3, 0), "at least one channel"),
        (torch.tensor(1.0), "at least one channel"),
        (torch.tensor([1.0, float("nan")]), "NaN or infinity"),
        (torch.tensor([1.0, float("inf")]), "NaN or infinity"),
    ],
)
def test_what_cannot_be_transformed_is_refused(x, complaint):
    for transform in (dct, idct):
        with pytest.raises(ValueError, match=complaint):
            transform(x)


def test_large_finite_numbers_are_not_taken_for_infinite():
    assert dct(torch.tensor([3e38, 3e38, -3e38, -3e38])).shape == (4,)


def test_a_transform_under_inference_mode_does_not_keep_later_ones_from_training():
    D = 1234  # of which no other test has kept tables
    with torch.inference_mode():
        spectral_entropy(torch.randn(2, D))
        filtered_idct(packed_dct(torch.randn(2, D)), torch.ones(D))
    x = torch.randn(2, D, requires_grad=True)
    (spectral_entropy(x).sum() + idct(dct(x)).sum()).backward()
    assert torch.isfinite(x.grad).all()
