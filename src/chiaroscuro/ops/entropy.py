"""Spectral entropy of token vectors, and what it is for noise.

Shapes: D channels; any leading shape.

    p_k = X_k^2 / sum_j X_j^2,  X = DCT-II(x),      H(x) = - sum_k p_k ln p_k / ln D   in [0, 1]     (paper, section 1)
"""

import math
from typing import Any

import torch
from torch import Tensor

from chiaroscuro.ops.checks import require_finite
from chiaroscuro.ops.dct import (
    Inverse,
    check,
    computed,
    forward_rows,
    has_kernel,
    is_one_vector,
    matrix,
    may_be_asked,
    slots,
    spectrum_of_one,
    tables_for,
)
from chiaroscuro.ops.function import Function
from chiaroscuro.ops.pieces import pieces, room, rows
from chiaroscuro.ops.spectral_op import fused_spectrum

LEAST, MOST = 1e-9, 1e9  # sums of energies beyond which small ones underflow, or digits of their logarithms cancel


def spectral_entropy(x: Tensor, dc_weight: float = 1.0) -> Tensor:
    """Entropy of the DCT power spectrum of each vector, divided by ln D so that it lies in [0, 1].

    x: (..., D). Returns (...) in the dtype of x. A vector of one channel, and one whose squared length is zero or
        infinite as a number of the precision in which it is computed, have entropy 0. Gradients are finite everywhere.
    dc_weight: multiplies the energy of the constant coefficient: 1 by the definition, 2 in checkpoints of the authors'
        code, 0 without it.

    Raises ValueError as `dct` does.
    """
    return packed_dct_and_entropy(x, dc_weight)[1].to(x.dtype)


def packed_dct_and_entropy(x: Tensor, dc_weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """`packed_dct` of x (..., D) and `spectral_entropy` (...), in one pass over memory and in float32 or float64; same
    errors."""
    check("spectral_entropy", x)
    x = x if has_kernel(x, x.shape[-1]) else computed(x)
    X, entropy = _SpectrumAndEntropy.run(x, dc_weight)
    if not is_one_vector(x):  # of which the entropy has seen every number
        require_finite("spectral_entropy", X[..., 0])
    return X, entropy


class _SpectrumAndEntropy(Function):
    """With u = X / |X|, e_k = c_k u_k^2 where c_0 is `dc_weight` and all others are one, S = sum e_k and p_k = e_k / S:

        H = (ln S - sum e_k ln e_k / S) / ln D,     dH / dX_k = -2 c_k u_k (ln p_k + H ln D) / (|X| S ln D)

    Vectors too short for their squares to be told from zero count as zero, which bounds the gradient.
    """

    @staticmethod
    def forward(x: Tensor, dc_weight: float) -> tuple[Tensor, Tensor]:
        D = x.shape[-1]
        if is_one_vector(x):
            X = spectrum_of_one(x)
            return X, _entropy_of_one(X, dc_weight, D)
        if has_kernel(x, D):
            X, entropy = fused_spectrum(x.reshape(-1, D), matrix(D, torch.float32, x.device), dc_weight)
            return X.view(*x.shape[:-1], -1), entropy.view(x.shape[:-1])
        x, tables, P = x.contiguous(), tables_for(D, x), slots(D)
        X, entropy = x.new_empty(*x.shape[:-1], P), x.new_empty(*x.shape[:-1], 1)
        space, more_space = room(x, P), room(x, P)
        for part, spectrum, place in pieces(x, X, entropy):
            n = len(part)
            forward_rows(part, spectrum, rows(space, n, D), tables)
            _entropy_rows(spectrum, place, rows(space, n, P), rows(more_space, n, P), dc_weight, D)
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
    nats, total = _nats(X, dc_weight, energy, product)
    extreme = ~((total > LEAST) & (total < MOST))
    if not may_be_asked(X) or extreme.any():  # each row by its own length, so that none depends on the others
        again, total = _nats(torch.mul(X, _shrink(X), out=product), dc_weight, energy, product)
        something = total > 2 * (X.shape[-1] + dc_weight) * torch.finfo(X.dtype).tiny
        nats = torch.where(extreme, torch.where(something, again, 0.0), nats)
    torch.clamp(nats.div_(math.log(D)), 0.0, 1.0, out=entropy)


def _nats(X: Tensor, dc_weight: float, energy: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """The entropies of packed spectra X (n, P) in nats, (n, 1), and the sums of their energies, none of which is taken
    for quite zero. `product` may be X."""
    tiny = torch.finfo(X.dtype).tiny
    torch.addcmul(X.new_full((), tiny), X, X, out=energy)
    if dc_weight != 1.0:
        energy[:, 0].mul_(dc_weight).add_(tiny)
    total = energy.sum(-1, keepdim=True)
    return total.log() - torch.log(energy, out=product).mul_(energy).sum(-1, keepdim=True).div_(total), total


def _entropy_of_one(X: Tensor, dc_weight: float, D: int) -> Tensor:
    """Entropy (...) of the packed spectrum (..., P) of one vector, on the CPU, in as few steps as can be: each costs
    the same, whatever it does."""
    energy = X.square()
    total = float(energy.sum())
    if not LEAST < total < MOST:
        require_finite("spectral_entropy", X[..., 0])
        energy = X.mul(_shrink(X)).square_()
        total = float(energy.sum())
    if dc_weight != 1.0:
        energy[..., 0] *= dc_weight
        total = float(energy.sum())
    nats = math.log(total) + float(torch.special.entr(energy).sum()) / total if total > 0.0 else 0.0
    return X.new_full(X.shape[:-1], min(max(nats / math.log(max(D, 2)), 0.0), 1.0))


def _slope(X: Tensor, dc_weight: float, D: int) -> Tensor:
    """dH / dX for packed spectra X (..., P)."""
    tiny = torch.finfo(X.dtype).tiny
    weight = torch.ones_like(X)
    weight[..., 0] = dc_weight
    shrink = _shrink(X.detach())
    weighted = X * shrink * weight
    energy = weighted * (X * shrink)
    total = energy.sum(-1, keepdim=True).clamp_min(math.sqrt(tiny))  # its square is divided by in the second derivative
    p = (energy / total).clamp_min(tiny)
    above_mean = p.log() - (p * p.log()).sum(-1, keepdim=True)
    return weighted * shrink * above_mean / total * (-2.0 / math.log(max(D, 2)))


def _shrink(X: Tensor) -> Tensor:
    """What to multiply vectors (..., P) by to make their lengths one, (..., 1); zero for those too short or too long
    for their squares."""
    length = torch.linalg.vector_norm(X, dim=-1, keepdim=True)
    return length.masked_fill_(length <= math.sqrt(torch.finfo(X.dtype).tiny), math.inf).reciprocal_()


def noise_entropy(D: int) -> float:
    """Expected spectral entropy of D independent Gaussian channels: (psi(D/2 + 1) - psi(3/2)) / ln D.

    The normalised energies of white noise follow a Dirichlet distribution with all parameters 1/2, whose expected
    entropy is known in closed form. For large D this is 1 - 0.7296 / ln D, the value around which the paper's
    thresholds lie.
    """
    _check_noise(D)
    digamma = torch.digamma(torch.tensor([D / 2 + 1, 1.5], dtype=torch.float64, device="cpu"))
    return float(digamma[0] - digamma[1]) / math.log(D)


def noise_deviation(D: int) -> float:
    """Standard deviation of the spectral entropy of D white-noise channels, for large D: 0.897 / (sqrt(D) ln D).

    By the delta method: with energies w of one degree of freedom, D times its square, in units of 1 / (ln D)^2, is the
    variance of (1 + E[w ln w]) w - w ln w, which is 3 psi'(5/2) - 2/3 = 3 pi^2 / 2 - 14.
    """
    _check_noise(D)
    return math.sqrt((3 * math.pi**2 / 2 - 14) / D) / math.log(D)


def _check_noise(D: int) -> None:
    if D < 2:
        raise ValueError(f"the entropy of noise needs at least two channels, got {D}")
