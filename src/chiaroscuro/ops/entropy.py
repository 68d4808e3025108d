"""Spectral entropy of token vectors, and what it is for noise.

Shapes: D channels; any leading shape.

    p_k = X_k^2 / sum_j X_j^2,  X = DCT-II(x),      H(x) = - sum_k p_k ln p_k / ln D   in [0, 1]     (paper, section 1)
"""

import math
from typing import Any

import torch
from torch import Tensor

from chiaroscuro.ops.checks import require_finite
from chiaroscuro.ops.dct import Inverse, check, computed, forward_rows, is_one_vector, matrix, slots, tables_for
from chiaroscuro.ops.function import Function
from chiaroscuro.ops.pieces import pieces, room


def spectral_entropy(x: Tensor, dc_weight: float = 1.0) -> Tensor:
    """Entropy of the DCT power spectrum of each vector, divided by ln D so that it lies in [0, 1].

    x: (..., D). Returns (...) in the dtype of x. A zero vector, and a vector of one channel, have entropy 0.
        Gradients are finite everywhere, entries beyond 1e36 overflow. `dc_weight` multiplies the energy of the
        constant coefficient: 1 by the definition, 2 in checkpoints of the authors' code. Raises ValueError as `dct`
        does.
    """
    return packed_dct_and_entropy(x, dc_weight)[1].to(x.dtype)


def packed_dct_and_entropy(x: Tensor, dc_weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """`packed_dct` of x (..., D) and `spectral_entropy` (...), in one pass over memory and in float32 or float64; same
    errors."""
    check("spectral_entropy", x)
    X, entropy = _SpectrumAndEntropy.run(computed(x), dc_weight)
    require_finite("spectral_entropy", X[..., 0])
    return X, entropy


class _SpectrumAndEntropy(Function):
    """With e_k = (X_k / m)^2 for m = max |X_k|, S = sum e_k and p_k = e_k / S:

        H = (ln S - sum e_k ln e_k / S) / ln D,     dH / dX_k = -2 X_k (ln p_k + H ln D) / (m^2 S ln D)

    Vectors too short for their squares to be told from zero count as zero, which bounds the gradient.
    """

    @staticmethod
    def forward(x: Tensor, dc_weight: float) -> tuple[Tensor, Tensor]:
        D = x.shape[-1]
        if is_one_vector(x):
            X = x @ matrix(D, x.dtype, x.device)
            return X, _entropy_of_one(X, dc_weight, D)
        x, tables, P = x.contiguous(), tables_for(D, x), slots(D)
        X, entropy = x.new_empty(*x.shape[:-1], P), x.new_empty(*x.shape[:-1], 1)
        samples, energy, product = room(x, D), room(x, P), room(x, P)
        for part, spectrum, place in pieces(x, X, entropy):
            forward_rows(part, spectrum, samples[: len(part)], tables)
            _entropy_rows(spectrum, place, energy[: len(part)], product[: len(part)], dc_weight, D)
        return X, entropy.squeeze(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.dc_weight = inputs
        ctx.channels = x.shape[-1]
        ctx.save_for_backward(output[0])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, of_X: Tensor | None, of_entropy: Tensor | None) -> tuple[Tensor | None, None]:
        (X,) = ctx.saved_tensors
        gradients = [] if of_X is None else [of_X]
        if of_entropy is not None:
            gradients.append(of_entropy[..., None] * _slope(X, ctx.dc_weight, ctx.channels))
        return Inverse.run(sum(gradients), ctx.channels) if gradients else None, None


def _entropy_rows(X: Tensor, entropy: Tensor, energy: Tensor, product: Tensor, dc_weight: float, D: int) -> None:
    """Write entropies of packed spectra X (n, P) to `entropy` (n, 1); two more (n, P) are room to work in."""
    if D == 1:
        entropy.zero_()
        return
    shrink = _shrink(torch.abs(X, out=energy))
    torch.mul(X, shrink, out=energy).square_().clamp_min_(torch.finfo(X.dtype).tiny)
    if dc_weight != 1.0:
        energy[:, 0] *= dc_weight
    total = energy.sum(-1, keepdim=True)
    spread = torch.log(energy, out=product).mul_(energy).sum(-1, keepdim=True)
    nats = torch.where(shrink > 0.0, total.log() - spread / total, 0.0)
    torch.clamp(nats / math.log(D), 0.0, 1.0, out=entropy)


def _entropy_of_one(X: Tensor, dc_weight: float, D: int) -> Tensor:
    """Entropy (...) of a packed spectrum (..., P), in as few steps as can be: for one vector each costs the same. In
    float64 the squares of numbers of float32 need no scaling."""
    energy = X.double().square()
    if dc_weight != 1.0:
        energy[..., 0] *= dc_weight
    total = energy.sum(-1, keepdim=True)
    total.masked_fill_(total <= torch.finfo(X.dtype).tiny, math.inf)  # too short: no entropy
    entropy = torch.special.entr(energy.div_(total)).sum(-1).mul_(1.0 / math.log(max(D, 2)))
    return entropy.clamp_(0.0, 1.0).to(X.dtype)


def _slope(X: Tensor, dc_weight: float, D: int) -> Tensor:
    """dH / dX for packed spectra X (..., P)."""
    tiny = torch.finfo(X.dtype).tiny
    weight = torch.ones_like(X)
    weight[..., 0] = dc_weight
    shrink = _shrink(X.detach().abs())
    weighted = X * shrink * weight
    energy = weighted * (X * shrink)
    total = energy.sum(-1, keepdim=True).clamp_min(tiny)
    p = (energy / total).clamp_min(tiny)
    above_mean = p.log() - (p * p.log()).sum(-1, keepdim=True)
    return weighted * shrink * above_mean / total * (-2.0 / math.log(max(D, 2)))


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
