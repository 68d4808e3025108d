"""Spectral entropy against its definition and at the edges of the number line."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chiaroscuro.ops import (
    idct,
    noise_deviation,
    noise_entropy,
    packed_dct,
    packed_dct_and_entropy,
    reference,
    spectral_entropy,
)


@pytest.mark.parametrize("D", [1, 2, 3, 7, 16, 65])
@pytest.mark.parametrize("dc_weight", [0.0, 1.0, 2.0])
def test_definition_and_gradient(D, dc_weight):
    x = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([reference.spectral_entropy(row, dc_weight) for row in x])
    torch.testing.assert_close(spectral_entropy(x, dc_weight), expected, atol=1e-12, rtol=0)
    spectrum, entropy = packed_dct_and_entropy(x, dc_weight)
    assert torch.equal(entropy, spectral_entropy(x, dc_weight))
    assert torch.equal(spectrum, packed_dct(x))
    if D < 20:
        assert torch.autograd.gradcheck(lambda x: packed_dct_and_entropy(x, dc_weight), x)
        assert torch.autograd.gradgradcheck(lambda x: spectral_entropy(x, dc_weight), x)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=2, max_size=40))
def test_always_between_zero_and_one_with_finite_gradients(values):
    x = torch.tensor(values, requires_grad=True)
    entropy = spectral_entropy(x)
    assert 0.0 <= float(entropy.detach()) <= 1.0
    entropy.backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-30, 1e-19, 1e-10, 1.0, 1e30])
@pytest.mark.parametrize("kind", ["constant", "one_hot", "noise"])
def test_gradients_are_finite_everywhere(dtype, scale, kind):
    vectors = {"constant": torch.ones(9), "one_hot": torch.eye(9)[3], "noise": torch.randn(9)}
    x = (vectors[kind].to(dtype) * scale).requires_grad_()
    spectral_entropy(x).backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-19, 1.0, 1e30])
@pytest.mark.parametrize("dc_weight", [0.0, 1.0, 2.0])
def test_one_vector_alone_has_the_entropy_that_it_has_among_others(scale, dc_weight):
    """It is computed in another way."""
    x = torch.randn(5, 64) * scale
    alone = torch.stack([spectral_entropy(row, dc_weight) for row in x])
    torch.testing.assert_close(alone, spectral_entropy(x, dc_weight), atol=2e-6, rtol=0)


def test_zero_for_a_zero_vector_and_a_single_frequency_one_for_a_flat_spectrum():
    assert float(spectral_entropy(torch.zeros(8))) == 0.0
    for k in range(8):
        assert float(spectral_entropy(idct(torch.eye(8, dtype=torch.float64)[k]))) == pytest.approx(0.0, abs=1e-12)
    assert float(spectral_entropy(idct(torch.ones(8, dtype=torch.float64)))) == pytest.approx(1.0)


@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1e3, 1e17])
def test_the_length_of_a_vector_does_not_matter(scale):
    x = torch.randn(5, 64)
    torch.testing.assert_close(spectral_entropy(x * scale), spectral_entropy(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [1e-20, 1e20])
def test_a_vector_too_short_or_too_long_for_its_squares_counts_as_zero(length):
    vectors = torch.stack((torch.randn(64) * length, torch.randn(64)))
    assert (spectral_entropy(vectors) > 0.0).tolist() == [False, True]
    assert float(spectral_entropy(vectors[0])) == 0.0
    assert float(spectral_entropy(vectors[0].double())) > 0.0


@pytest.mark.parametrize("dc_weight", [0.0, 1.0, 2.0, 1000.0])
def test_a_row_without_a_length_has_no_entropy_and_changes_that_of_no_other(dc_weight):
    x = torch.randn(7, 16)
    x[1:4] *= torch.tensor([0.0, 1e-30, 1e30])[:, None]
    x[4] = torch.tensor([3e38, -3e38]).repeat(8)  # whose spectrum is infinite
    entropy, others = spectral_entropy(x, dc_weight), [0, 5, 6]
    assert entropy[1:5].tolist() == [0.0] * 4
    assert [float(spectral_entropy(row, dc_weight)) for row in x[1:5]] == [0.0] * 4
    assert torch.equal(entropy[others], spectral_entropy(x[others], dc_weight))


@pytest.mark.parametrize("total", [0.9e-9, 1.1e-9, 0.9e9, 1.1e9])
def test_entropy_where_the_way_to_it_changes(total):
    x = torch.randn(50, 64, dtype=torch.float64)
    x = (x * math.sqrt(total) / x.norm(dim=-1, keepdim=True)).float()
    torch.testing.assert_close(spectral_entropy(x), spectral_entropy(x.double()).float(), atol=4e-6, rtol=0)


def test_the_energy_of_the_constant_coefficient_can_count_double():
    x = idct(torch.tensor([1.0, 1.0], dtype=torch.float64))
    expected = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(2)
    assert float(spectral_entropy(x, dc_weight=2.0)) == pytest.approx(expected)


def test_a_constant_vector_without_its_constant_coefficient_has_none():
    for x in (torch.ones(2, 9), torch.ones(9), torch.ones(9).double()):
        assert float(spectral_entropy(x, 0.0).max()) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("D", [2, 16, 256, 1024])
def test_noise_has_the_entropy_that_is_expected_of_it(D):
    measured = spectral_entropy(torch.randn(20_000, D, dtype=torch.float64))
    assert noise_entropy(D) == pytest.approx(float(measured.mean()), abs=5 * float(measured.std()) / math.sqrt(20_000))
    if D >= 256:
        assert noise_deviation(D) == pytest.approx(float(measured.std()), rel=0.03)


@pytest.mark.parametrize(("D", "published"), [(256, 0.868), (1024, 0.895)])
def test_the_expectation_for_wide_noise(D, published):
    assert noise_entropy(D) == pytest.approx(1 - 0.7296 / math.log(D), abs=2e-3)
    assert noise_entropy(D) == pytest.approx(published, abs=2e-3)


def test_one_channel_has_no_noise_entropy():
    with pytest.raises(ValueError, match="at least two channels"):
        noise_entropy(1)


@pytest.mark.parametrize("shape", [(2,), (1, 1, 2), (3, 2)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_entropy_of_what_is_not_a_number_is_refused(shape, value):
    x = torch.ones(shape)
    x[..., 0] = value
    for vectors in (x, torch.nn.Parameter(x)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            spectral_entropy(vectors)
