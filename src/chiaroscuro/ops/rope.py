"""Rotary position embedding, in the rotate-half form (Su et al., "RoFormer", arXiv 2104.09864).

Shapes: B batch, T tokens, N heads, H head channels; any leading shape.
"""

from typing import Any

import torch
from torch import Tensor

from chiaroscuro.ops.accelerator import most_precise
from chiaroscuro.ops.function import Function


def rotary_tables(positions: Tensor, H: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (..., H) in float32 or float64, for integer `positions` (...). H must be even."""
    if H % 2:
        raise ValueError(f"rotary position embedding needs an even head size, got {H}")
    precision = most_precise(positions.device)
    frequency = base ** (-torch.arange(0, H, 2, dtype=precision, device=positions.device) / H)
    angle = positions[..., None].to(precision) * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the channel pairs (i, i + H/2) of x (..., H) by the angles behind `cos` and `sin`, broadcast against x. The
    tables take no gradient."""
    return _Rotation.run(x, cos.to(x.dtype), sin.to(x.dtype), False)


class _Rotation(Function):
    """In three passes over memory, forwards and backwards; the obvious formula takes twice as many."""

    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
        half = x.shape[-1] // 2
        sign = -1.0 if back else 1.0
        # Contiguous whatever x is: heads lie apart then, which attention reads faster.
        out = torch.mul(x, cos, out=x.new_empty(x.shape))
        out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
        out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, cos, sin, ctx.back = inputs
        ctx.save_for_backward(cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        # The inverse of a rotation is its transpose.
        return _Rotation.run(gradient, *ctx.saved_tensors, not ctx.back), None, None, None
