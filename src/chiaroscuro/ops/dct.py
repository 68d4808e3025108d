"""Orthonormal DCT-II and its inverse over the last axis, through one real FFT of the same length.

Shapes: D channels; any leading shape.

    X_k = s_k sum_n x_n cos(pi (2n + 1) k / 2D),   s_0 = sqrt(1/D),  s_k = sqrt(2/D)

The even-indexed samples followed by the odd-indexed ones in reverse form a sequence whose FFT, turned by a
quarter-sample phase, is the DCT (J. Makhoul, "A fast cosine transform in one and two dimensions", 1980). The transform
is orthonormal, so its transpose is its inverse: each is the backward pass of the other.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from chiaroscuro.ops.checks import require_finite

# Elements of the rows that stay in the cache. Every entry of a vector goes into the first one of its transform, so that
# one tells whether any of them was NaN or infinite.
AT_A_TIME = 2**17


def dct(x: Tensor) -> Tensor:
    """Orthonormal DCT-II of the last axis (the transform of paper section 1, made orthonormal).

    x: (..., D) real, any D >= 1, odd too. Returns (..., D) in the dtype of x; bfloat16 and float16 are computed in
        float32. Raises ValueError for integer, complex or empty input, and for NaN or infinity on the CPU.
    """
    _check("dct", x)
    X = _DCT.apply(_computed(x)) if x.numel() else x
    require_finite("dct", X[..., 0])
    return X.to(x.dtype)


def idct(X: Tensor) -> Tensor:
    """Inverse of `dct` (an orthonormal DCT-III) over the last axis; same shapes, dtypes and errors."""
    _check("idct", X)
    x = _IDCT.apply(_computed(X)) if X.numel() else X
    require_finite("idct", x[..., 0])
    return x.to(X.dtype)


def _check(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"{name}: expected a real floating-point tensor, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name}: the last axis must hold at least one channel, got shape {tuple(x.shape)}")


def _computed(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _phase(D: int, x: Tensor) -> Tensor:
    """sqrt(2) exp(-i pi k / 2D), and 1 for k = 0, for the D // 2 + 1 coefficients a real FFT returns."""
    k = torch.arange(D // 2 + 1, dtype=x.dtype, device=x.device)
    length = torch.full_like(k, math.sqrt(2))
    length[0] = 1.0
    return torch.polar(length, k * (-math.pi / (2 * D)))


# Both transforms are one FFT of length D and little else: time goes by passes over memory. So what can be is written
# in place, and only so many rows are taken at a time that all passes over them find them in the cache.


def _forward(x: Tensor, X: Tensor) -> None:
    D = x.shape[-1]
    half = (D + 1) // 2
    X[..., :half] = x[..., ::2]
    X[..., half:] = x[..., 1::2].flip(-1)
    V = torch.view_as_real(torch.fft.rfft(X, norm="ortho").mul_(_phase(D, x)))
    # X_k = Re V_k and X_{D-k} = -Im V_k; both halves come from the same half spectrum.
    X[..., : D // 2 + 1] = V[..., 0]
    X[..., D // 2 + 1 :] = V[..., 1:half, 1].neg_().flip(-1)


def _inverse(X: Tensor, x: Tensor) -> None:
    D = X.shape[-1]
    half = (D + 1) // 2
    V = X.new_empty(*X.shape[:-1], D // 2 + 1, 2)
    V[..., 0] = X[..., : D // 2 + 1]
    V[..., 0, 1] = 0.0
    torch.neg(X[..., half:].flip(-1), out=V[..., 1:, 1])
    V_k = torch.view_as_complex(V).mul_(_phase(D, X).reciprocal())
    reordered = torch.fft.irfft(V_k, n=D, norm="ortho")
    x[..., ::2] = reordered[..., :half]
    x[..., 1::2] = reordered[..., half:].flip(-1)


@lru_cache(maxsize=8)
def _matrix(D: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(D, D): the transform of each unit vector."""
    with torch.no_grad():
        return _by_rows(_forward, torch.eye(D, dtype=dtype, device=device))


def _is_one_vector(x: Tensor) -> bool:
    """Whether a product with the matrix is faster than the dozen small steps of an FFT: for one vector of moderate
    length, as a step of generation has it."""
    return x.numel() == x.shape[-1] <= 1024 and not torch.compiler.is_compiling()


def _by_rows(transform: Callable[[Tensor, Tensor], None], x: Tensor) -> Tensor:
    """`transform` of all vectors; it is given some of them and where to write their transforms."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows, into = x.reshape(-1, x.shape[-1]), out.view(-1, x.shape[-1])
    size = max(1, AT_A_TIME // x.shape[-1])
    for part, place in zip(rows.split(size), into.split(size), strict=True):
        transform(part, place)
    return out


class _DCT(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x @ _matrix(x.shape[-1], x.dtype, x.device) if _is_one_vector(x) else _by_rows(_forward, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _IDCT.apply(grad)


class _IDCT(torch.autograd.Function):
    @staticmethod
    def forward(X: Tensor) -> Tensor:
        return X @ _matrix(X.shape[-1], X.dtype, X.device).T if _is_one_vector(X) else _by_rows(_inverse, X)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _DCT.apply(grad)
