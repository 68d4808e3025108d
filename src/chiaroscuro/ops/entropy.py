"""Spectral entropy of token vectors, and what it is for noise.

Shapes: D channels; any leading shape.

    p_k = X_k^2 / sum_j X_j^2,  X = DCT-II(x),      H(x) = - sum_k p_k ln p_k / ln D   in [0, 1]     (paper, section 1)
"""

import math
from typing import Any

import torch
from torch import Tensor

from chiaroscuro.ops.dct import packed_dct, rows_at_a_time


def spectral_entropy(x: Tensor, dc_weight: float = 1.0) -> Tensor:
    """Entropy of the DCT power spectrum of each vector, divided by ln D so that it lies in [0, 1].

    x: (..., D). Returns (...) in the dtype of x. A zero vector, and a vector of one channel, have entropy 0.
        Gradients are finite everywhere, entries beyond 1e36 overflow. `dc_weight` multiplies the energy of the
        constant coefficient: 1 by the definition, 2 in checkpoints of the authors' code. Raises ValueError as `dct`
        does.
    """
    return spectrum_entropy(packed_dct(x), dc_weight, x.shape[-1]).to(x.dtype)


def spectrum_entropy(X: Tensor, dc_weight: float = 1.0, channels: int | None = None) -> Tensor:
    """`spectral_entropy` of vectors whose DCT is already at hand: X (..., D), or packed (..., P) with D given as
    `channels`."""
    D = X.shape[-1] if channels is None else channels
    computed = X if X.dtype == torch.float64 else X.float()
    return _Entropy.apply(computed, dc_weight, D).to(X.dtype)


class _Entropy(torch.autograd.Function):
    """With e_k = (X_k / m)^2 for m = max |X_k|, S = sum e_k and p_k = e_k / S:

        H = (ln S - sum e_k ln e_k / S) / ln D,     dH / dX_k = -2 X_k (ln p_k + H ln D) / (m^2 S ln D)

    Vectors too short for their squares to be told from zero count as zero, which bounds the gradient.
    """

    @staticmethod
    def forward(X: Tensor, dc_weight: float, D: int) -> Tensor:
        entropy = X.new_zeros(X.shape[:-1])
        if D == 1 or not X.numel():
            return entropy
        rows, number = X.reshape(-1, X.shape[-1]), rows_at_a_time(X)
        spare = X.new_empty(2, min(number, len(rows)), X.shape[-1])
        for part, place in zip(rows.split(number), entropy.view(-1).split(number), strict=True):
            energy, product = spare[:, : len(part)]
            shrink = _shrink(torch.abs(part, out=energy))
            torch.mul(part, shrink, out=energy).square_().clamp_min_(torch.finfo(X.dtype).tiny)
            if dc_weight != 1.0:
                energy[:, 0] *= dc_weight
            total = energy.sum(-1)
            spread = torch.log(energy, out=product).mul_(energy).sum(-1)
            place.copy_(torch.where(shrink[:, 0] > 0.0, total.log() - spread / total, 0.0))
        return entropy.div_(math.log(D)).clamp_(0.0, 1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        X, ctx.dc_weight, ctx.channels = inputs
        ctx.save_for_backward(X)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (X,) = ctx.saved_tensors
        tiny = torch.finfo(X.dtype).tiny
        weight = torch.ones_like(X[..., :1]).expand_as(X).clone()
        weight[..., 0] = ctx.dc_weight
        shrink = _shrink(X.detach().abs())
        weighted = X * shrink * weight
        energy = weighted * (X * shrink)
        total = energy.sum(-1, keepdim=True).clamp_min(tiny)
        p = (energy / total).clamp_min(tiny)
        above_mean = p.log() - (p * p.log()).sum(-1, keepdim=True)
        slope = weighted * shrink * above_mean / total * (-2.0 / math.log(max(ctx.channels, 2)))
        return gradient[..., None] * slope, None, None


def _shrink(size: Tensor) -> Tensor:
    """What to multiply vectors by, given the absolute values of their entries (..., D), so that the largest is one;
    zero for vectors too short."""
    largest = size.amax(-1, keepdim=True)
    return torch.where(largest > math.sqrt(torch.finfo(size.dtype).tiny), largest, math.inf).reciprocal()


def noise_entropy(D: int) -> float:
    """Expected spectral entropy of D independent Gaussian channels: (psi(D/2 + 1) - psi(3/2)) / ln D.

    The normalised energies of white noise follow a Dirichlet distribution with all parameters 1/2, whose expected
    entropy is known in closed form. For large D this is 1 - 0.7296 / ln D, the value around which the paper's
    thresholds lie.
    """
    if D < 2:
        raise ValueError(f"noise_entropy: needs at least two channels, got {D}")
    digamma = torch.digamma(torch.tensor([D / 2 + 1, 1.5], dtype=torch.float64, device="cpu"))
    return float(digamma[0] - digamma[1]) / math.log(D)
