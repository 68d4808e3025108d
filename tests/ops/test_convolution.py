"""The short convolution against its definition.

Shapes: B batch, T tokens, D channels, W taps.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chiaroscuro.ops import reference, short_convolution

sizes = given(
    B=st.integers(1, 3), T=st.integers(1, 9), D=st.integers(1, 5), W=st.integers(1, 5), seed=st.integers(0, 99)
)


def drawn(B: int, T: int, D: int, W: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return tuple(
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((B, T, D), (W, D), (B, W - 1, D))
    )


@sizes
def test_it_is_its_definition_and_goes_on_from_what_came_before(B, T, D, W, seed):
    x, weight, before = drawn(B, T, D, W, seed)
    expected = torch.stack([reference.short_convolution(row, weight) for row in x])
    torch.testing.assert_close(short_convolution(x, weight), expected)
    torch.testing.assert_close(short_convolution(x, weight, torch.zeros_like(before)), expected)
    going_on = torch.stack([reference.short_convolution(row, weight) for row in torch.cat((before, x), dim=1)])
    torch.testing.assert_close(short_convolution(x, weight, before), going_on[:, W - 1 :])


@sizes
def test_its_gradients_are_those_of_differences(B, T, D, W, seed):
    x, weight, before = drawn(B, T, D, W, seed)
    assert torch.autograd.gradcheck(short_convolution, (x, weight))
    assert torch.autograd.gradgradcheck(short_convolution, (x, weight))
    assert torch.autograd.gradcheck(short_convolution, (x, weight, before))


def test_it_is_computed_in_the_precision_of_its_input_under_autocast_too():
    x, weight, _ = (tensor.detach().float() for tensor in drawn(2, 40, 8, 4, 0))
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = short_convolution(x, weight)
    assert torch.equal(out, short_convolution(x, weight))
    out.sum().backward()
    assert weight.grad.isfinite().all()
    rough = short_convolution(x.bfloat16(), weight)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), out, atol=0.05, rtol=0.05)


def test_as_many_tokens_before_as_there_are_further_taps():
    x, weight, before = drawn(1, 5, 3, 4, 0)
    with pytest.raises(ValueError, match="4 taps need 3 tokens before the first, got 2"):
        short_convolution(x, weight, before[:, 1:])


@pytest.mark.parametrize(("tokens", "taps"), [((2, 0, 3), (4, 3)), ((2, 5, 3), (0, 3)), ((2, 1, 3), (4, 1))])
def test_taps_and_tokens_must_be_there_and_have_the_same_channels(tokens, taps):
    with pytest.raises(ValueError, match="with the same number of channels last"):
        short_convolution(torch.zeros(tokens), torch.zeros(taps), torch.zeros(2, 3, 3))
