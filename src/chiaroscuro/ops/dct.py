"""Orthonormal DCT-II and its inverse over the last axis, through one real FFT of the same length.

Shapes: D channels; any leading shape.

    X_k = s_k sum_n x_n cos(pi (2n + 1) k / 2D),   s_0 = sqrt(1/D),  s_k = sqrt(2/D)

The even-indexed samples followed by the odd-indexed ones in reverse form a sequence whose FFT, turned by a
quarter-sample phase, is the DCT (J. Makhoul, "A fast cosine transform in one and two dimensions", 1980). The transform
is orthonormal, so its transpose is its inverse: each is the backward pass of the other.
"""

import math
from typing import Any

import torch
from torch import Tensor

from chiaroscuro.ops.checks import require_finite


def dct(x: Tensor) -> Tensor:
    """Orthonormal DCT-II of the last axis (the transform of paper section 1, made orthonormal).

    x: (..., D) real, any D >= 1, odd too. Returns (..., D) in the dtype of x; bfloat16 and float16 are computed in
        float32. Raises ValueError for integer, complex or empty input, and for NaN or infinity on the CPU.
    """
    _check("dct", x)
    return _DCT.apply(_computed(x)).to(x.dtype) if x.numel() else x


def idct(X: Tensor) -> Tensor:
    """Inverse of `dct` (an orthonormal DCT-III) over the last axis; same shapes, dtypes and errors."""
    _check("idct", X)
    return _IDCT.apply(_computed(X)).to(X.dtype) if X.numel() else X


def _check(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"{name}: expected a real floating-point tensor, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name}: the last axis must hold at least one channel, got shape {tuple(x.shape)}")
    require_finite(name, x)


def _computed(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _phase(D: int, x: Tensor) -> Tensor:
    """exp(-i pi k / 2D) for the D // 2 + 1 coefficients a real FFT returns."""
    angle = torch.arange(D // 2 + 1, dtype=x.dtype, device=x.device) * (-math.pi / (2 * D))
    return torch.polar(torch.ones_like(angle), angle)


def _forward(x: Tensor) -> Tensor:
    D = x.shape[-1]
    reordered = torch.cat((x[..., ::2], x[..., 1::2].flip(-1)), dim=-1)
    V = torch.fft.rfft(reordered, norm="ortho") * _phase(D, x)
    # X_k = Re V_k and X_{D-k} = -Im V_k; both halves come from the same half spectrum.
    X = torch.cat((V.real, -V.imag[..., 1 : (D + 1) // 2].flip(-1)), dim=-1) * math.sqrt(2)
    X[..., 0] *= math.sqrt(0.5)
    return X


def _inverse(X: Tensor) -> Tensor:
    D = X.shape[-1]
    mirrored = torch.cat((torch.zeros_like(X[..., :1]), X[..., 1:].flip(-1)), dim=-1)[..., : D // 2 + 1]
    V = torch.complex(X[..., : D // 2 + 1], -mirrored) * _phase(D, X).conj() * math.sqrt(0.5)
    V[..., 0] *= math.sqrt(2)
    reordered = torch.fft.irfft(V, n=D, norm="ortho")
    x = torch.empty_like(reordered)
    x[..., ::2] = reordered[..., : (D + 1) // 2]
    x[..., 1::2] = reordered[..., (D + 1) // 2 :].flip(-1)
    return x


class _DCT(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _IDCT.apply(grad)


class _IDCT(torch.autograd.Function):
    @staticmethod
    def forward(X: Tensor) -> Tensor:
        return _inverse(X)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _DCT.apply(grad)
