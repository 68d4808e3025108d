"""Rotary position embedding, in the rotate-half form (Su et al., "RoFormer", arXiv 2104.09864).

Shapes: B batch, T tokens, N heads, H head channels; any leading shape.
"""

import torch
from torch import Tensor


def rotary_tables(positions: Tensor, H: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (..., H) in float32 or float64, for integer `positions` (...). H must be even."""
    if H % 2:
        raise ValueError(f"rotary position embedding needs an even head size, got {H}")
    frequency = base ** (-torch.arange(0, H, 2, dtype=torch.float64, device=positions.device) / H)
    angle = positions[..., None].double() * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the channel pairs (i, i + H/2) of x (..., H) by the angles behind `cos` and `sin`, broadcast against x."""
    left, right = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-right, left), dim=-1) * sin.to(x.dtype)
