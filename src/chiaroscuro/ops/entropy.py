"""Spectral entropy of token vectors, and what it is for noise.

Shapes: D channels; any leading shape.

    p_k = X_k^2 / sum_j X_j^2,  X = DCT-II(x),      H(x) = - sum_k p_k ln p_k / ln D   in [0, 1]     (paper, section 1)
"""

import math

import torch
from torch import Tensor

from chiaroscuro.ops.dct import AT_A_TIME, dct


def spectral_entropy(x: Tensor, dc_weight: float = 1.0) -> Tensor:
    """Entropy of the DCT power spectrum of each vector, divided by ln D so that it lies in [0, 1].

    x: (..., D). Returns (...) in the dtype of x. A zero vector, and a vector of one channel, have entropy 0.
        Gradients are finite everywhere, entries beyond 1e36 overflow. `dc_weight` multiplies the energy of the
        constant coefficient: 1 by the definition, 2 in checkpoints of the authors' code. Raises ValueError as `dct`
        does.
    """
    return spectrum_entropy(dct(x), dc_weight)


def spectrum_entropy(X: Tensor, dc_weight: float = 1.0) -> Tensor:
    """`spectral_entropy` of vectors whose DCT coefficients X (..., D) are already at hand."""
    computed = X if X.dtype == torch.float64 else X.float()
    if computed.requires_grad and torch.is_grad_enabled():
        return _entropy(computed, dc_weight).to(X.dtype)
    # Some rows at a time, so that all passes over them find them in the cache.
    rows = computed.reshape(-1, X.shape[-1]).split(max(1, AT_A_TIME // X.shape[-1]))
    parts = [_entropy(part, dc_weight) for part in rows]
    return torch.cat(parts).view(X.shape[:-1]).to(X.dtype)


def _entropy(X: Tensor, dc_weight: float) -> Tensor:
    D = X.shape[-1]
    if D == 1:
        return X[..., 0] * 0.0
    # The entropy does not change with the length of the vector, so the division needs no gradient of its own. Vectors
    # too short for their squares to be told from zero count as zero, which bounds the gradient.
    scale = X.detach().abs().amax(-1, keepdim=True)
    tiny = torch.finfo(X.dtype).tiny
    long_enough = scale > math.sqrt(tiny)
    energy = (X * torch.where(long_enough, scale, math.inf).reciprocal()).square()
    if dc_weight != 1.0:
        energy = torch.cat((dc_weight * energy[..., :1], energy[..., 1:]), dim=-1)
    total = energy.sum(-1).clamp_min(tiny)
    # -sum p ln p = ln S - sum(e ln e) / S, with e = 0 where S = 0.
    spread = (energy * energy.clamp_min(tiny).log()).sum(-1)
    entropy = torch.where(long_enough[..., 0], total.log() - spread / total, 0.0)
    return (entropy / math.log(D)).clamp(0.0, 1.0)


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
