"""Orthonormal DCT-II and its inverse over the last axis, through one real FFT of the same length.

Shapes: D channels, P = 2 (D // 2 + 1) slots of a packed spectrum; any leading shape.

    X_k = s_k sum_n x_n cos(pi (2n + 1) k / 2D),   s_0 = sqrt(1/D),  s_k = sqrt(2/D)

The even-indexed samples followed by the odd-indexed ones in reverse form a sequence whose FFT, turned by a
quarter-sample phase, is the DCT (J. Makhoul, "A fast cosine transform in one and two dimensions", 1980): coefficient k
is the real part of number k, coefficient D - k the negative of its imaginary part. A spectrum left in this order,
X_0, 0, X_1, -X_{D-1}, X_2, -X_{D-2} ..., is called packed here. Entropy and filter do not mind the order, and sorting
costs as much as the FFT. The transforms are orthonormal, so each is the backward pass of the other.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chiaroscuro.ops.accelerator import has_triton
from chiaroscuro.ops.checks import require_finite
from chiaroscuro.ops.function import Function
from chiaroscuro.ops.pieces import pieces, room, rows
from chiaroscuro.ops.spectral_op import fused_inverse, fused_spectrum


def dct(x: Tensor) -> Tensor:
    """Orthonormal DCT-II of the last axis (the transform of paper section 1, made orthonormal).

    x: (..., D) real, any D >= 1, odd too. Returns (..., D) in the dtype of x; bfloat16 and float16 are computed in
        float32. Raises ValueError for integer, complex or empty input, and for NaN or infinity on the CPU.
    """
    check("dct", x)
    X = _Forward.run(computed(x))
    require_finite("dct", X[..., 0])  # every sample goes into it, so it tells of all
    tables = tables_for(x.shape[-1], X)
    return (X.index_select(-1, tables.slot_D) * tables.sign_P[tables.slot_D]).to(x.dtype)


def idct(X: Tensor) -> Tensor:
    """Inverse of `dct` (an orthonormal DCT-III) over the last axis; same shapes, dtypes and errors."""
    check("idct", X)
    D = X.shape[-1]
    tables = tables_for(D, computed(X))
    x = Inverse.run(computed(X).index_select(-1, tables.coefficient_P) * tables.sign_P, D)
    require_finite("idct", x[..., 0])
    return x.to(X.dtype)


def packed_dct(x: Tensor) -> Tensor:
    """`dct` of x (..., D) left in the order of the FFT, (..., P), in float32 or float64; same errors."""
    check("packed_dct", x)
    X = _Forward.run(computed(x))
    require_finite("packed_dct", X[..., 0])
    return X


def filtered_idct(X: Tensor, w_D: Tensor, chosen_M: Tensor | None = None) -> Tensor:
    """Vectors (..., D) from their packed spectrum (..., P), coefficient k multiplied by w_k, in float32 or float64.

    With `chosen_M`, (M, D) from those of the flattened rows of X that it lists, none twice. Raises ValueError when P
        does not belong to D, and as `dct` does.
    """
    check("filtered_idct", X)
    D = w_D.shape[0]
    if X.shape[-1] != slots(D):
        raise ValueError(f"filtered_idct: {D} channels have {slots(D)} slots, got shape {tuple(X.shape)}")
    X = computed(X)
    w_P = w_D.to(X.dtype).index_select(0, tables_for(D, X).coefficient_P)
    x = _FilteredInverse.run(X, w_P, D, chosen_M)
    require_finite("filtered_idct", x[..., 0])
    return x


def check(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"{name}: expected a real floating-point tensor, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name}: the last axis must hold at least one channel, got shape {tuple(x.shape)}")


def computed(x: Tensor) -> Tensor:
    """x in the precision in which transforms are computed."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def slots(D: int) -> int:
    """P, the length of a packed spectrum of D channels."""
    return 2 * (D // 2 + 1)


class Tables(NamedTuple):
    """sample_D: the order in which samples go into the FFT. place_D: where sample n comes out of its inverse. turn,
    back (P / 2,): what the numbers of the FFT are multiplied by, and what undoes it. coefficient_P: the coefficient in
    each slot. sign_P: its sign there, zero where a slot holds nothing. slot_D: where coefficient k is."""

    sample_D: Tensor
    place_D: Tensor
    turn: Tensor
    back: Tensor
    coefficient_P: Tensor
    sign_P: Tensor
    slot_D: Tensor


def _make_tables(D: int, dtype: torch.dtype, device: torch.device) -> Tables:
    channels = torch.arange(D, device=device)
    sample_D = torch.cat((channels[::2], channels[1::2].flip(0)))
    k = torch.arange(D // 2 + 1, device=device)
    turn = torch.polar((2.0 - (k == 0).to(dtype)).sqrt(), k.to(dtype) * (-math.pi / (2 * D)))
    if D % 2 == 0:
        turn[-1] = 1.0  # the number in the middle is real, and holds one coefficient
    back = turn.reciprocal()
    sign = torch.tensor([1.0, -1.0], dtype=dtype, device=device).repeat(D // 2 + 1, 1)
    sign[0, 1] = 0.0
    if D % 2 == 0:
        sign[-1, 1] = 0.0
    coefficient_P = torch.stack((k, (D - k) % D), dim=-1).flatten()
    slot_D = torch.where(channels <= D // 2, 2 * channels, 2 * (D - channels) + 1)
    return Tables(sample_D, sample_D.argsort(), turn, back, coefficient_P, sign.flatten(), slot_D)


@lru_cache(maxsize=16)
def _kept_tables(D: int, dtype: torch.dtype, device: torch.device) -> Tables:
    with torch.inference_mode(False):  # what is made under it can never be trained with
        return _make_tables(D, dtype, device)


def tables_for(D: int, x: Tensor) -> Tables:
    """For transforms of D channels on the device of x. Kept, unless x is of a kind that only stands for tensors."""
    plain = type(x) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
    return (_kept_tables if plain else _make_tables)(D, x.dtype, x.device)


def forward_rows(x: Tensor, X: Tensor, samples: Tensor, tables: Tables) -> None:
    """Write packed spectra of rows x (n, D) to X (n, P); `samples` (n, D) is room to work in."""
    torch.index_select(x, -1, tables.sample_D, out=samples)
    torch.mul(torch.fft.rfft(samples, norm="ortho"), tables.turn, out=_as_complex(X))


def _inverse_rows(X: Tensor, x: Tensor, numbers: Tensor, tables: Tables) -> None:
    """Write vectors to x (n, D) from their packed spectra X (n, P); `numbers` (n, P), room to work in, may be X."""
    torch.mul(_as_complex(X), tables.back, out=_as_complex(numbers))
    samples = torch.fft.irfft(_as_complex(numbers), n=x.shape[-1], norm="ortho")
    torch.index_select(samples, -1, tables.place_D, out=x)


def _as_complex(X: Tensor) -> Tensor:
    return torch.view_as_complex(X.unflatten(-1, (-1, 2)))


def _forward(x: Tensor) -> Tensor:
    D = x.shape[-1]
    if has_kernel(x, D):
        return fused_spectrum(x.reshape(-1, D), matrix(D, x.dtype, x.device), 1.0)[0].view(*x.shape[:-1], -1)
    return _by_fft(x)


def _by_fft(x: Tensor) -> Tensor:
    if is_one_vector(x):
        return spectrum_of_one(x)
    D = x.shape[-1]
    x, tables = x.contiguous(), tables_for(D, x)
    X, samples = x.new_empty(*x.shape[:-1], slots(D)), room(x, D)
    for part, place in pieces(x, X):
        forward_rows(part, place, rows(samples, len(part), D), tables)
    return X


def _inverse(X: Tensor, D: int, w_P: Tensor | None = None, chosen_M: Tensor | None = None) -> Tensor:
    P = X.shape[-1]
    if chosen_M is None and is_one_vector(X):
        return _vector_of_one(X if w_P is None else X * w_P, D)
    if has_kernel(X, D):
        out = fused_inverse(X.reshape(-1, P), matrix(D, X.dtype, X.device), w_P, chosen_M)
        return out if chosen_M is not None else out.view(*X.shape[:-1], D)
    X, tables = X.contiguous(), tables_for(D, X)
    x = X.new_empty(*(X.shape[:-1] if chosen_M is None else chosen_M.shape), D)
    space = room(x, P)
    for place, part in pieces(x, X if chosen_M is None else chosen_M[:, None]):
        numbers = rows(space, len(place), P)
        if chosen_M is not None:
            part = torch.index_select(X.view(-1, P), 0, part[:, 0], out=numbers)
        if w_P is not None:
            part = torch.mul(part, w_P, out=numbers)
        _inverse_rows(part, place, numbers, tables)
    return x


def is_one_vector(x: Tensor) -> bool:
    """Whether x is a single vector on the CPU, as in a step of generation, where every step costs the same, whatever it
    does: fewer of them are better than less memory."""
    return x.numel() == x.shape[-1] and may_be_asked(x)


def may_be_asked(x: Tensor) -> bool:
    """Whether Python may branch on the numbers in x: a plain tensor on the CPU, where asking stalls no accelerator,
    neither traced nor compiled."""
    stands_for_others = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter) and not stands_for_others


def spectrum_of_one(x: Tensor) -> Tensor:
    tables = tables_for(x.shape[-1], x)
    numbers = torch.fft.rfft(x.index_select(-1, tables.sample_D), norm="ortho") * tables.turn
    return torch.view_as_real(numbers).flatten(-2)


def _vector_of_one(X: Tensor, D: int) -> Tensor:
    tables = tables_for(D, X)
    samples = torch.fft.irfft(_as_complex(X.contiguous()) * tables.back, n=D, norm="ortho")
    return samples.index_select(-1, tables.place_D)


MATRIX_UP_TO = 1024  # channels that the kernels for GPUs take


@lru_cache(maxsize=8)
def matrix(D: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(D, P): the packed spectrum of each unit vector."""
    with torch.inference_mode(False), torch.no_grad():
        return _by_fft(torch.eye(D, dtype=dtype, device=device))


def has_kernel(x: Tensor, D: int) -> bool:
    """Whether vectors of D channels, or their spectra, such as x are left to the kernels for GPUs."""
    return by_matrix(x, D) and type(x) is Tensor and not torch.compiler.is_compiling()


def by_matrix(x: Tensor, D: int) -> bool:
    """Whether transforms of vectors such as x are products with the matrix, as those of the kernels for GPUs are."""
    return x.device.type == "cuda" and x.dtype != torch.float64 and D <= MATRIX_UP_TO and has_triton()


class _Forward(Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.channels = inputs[0].shape[-1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Inverse.run(gradient, ctx.channels)


class Inverse(Function):
    """Inverse of `_Forward`; unused slots of the packed spectrum are ignored."""

    @staticmethod
    def forward(X: Tensor, D: int) -> Tensor:
        return _inverse(X, D)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Forward.run(gradient), None


class _FilteredInverse(Function):
    """`Inverse` of X * w, or of some of its rows, in one go."""

    @staticmethod
    def forward(X: Tensor, w_P: Tensor, D: int, chosen_M: Tensor | None) -> Tensor:
        return _inverse(X, D, w_P, chosen_M)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        X, w_P, _, chosen_M = inputs
        ctx.save_for_backward(X, w_P, chosen_M)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        X, w_P, chosen_M = ctx.saved_tensors
        spectrum, P = _Forward.run(gradient), X.shape[-1]
        of_X, rows_X = spectrum * w_P, X.reshape(-1, P)
        if chosen_M is not None:
            of_X = torch.zeros_like(rows_X).index_copy(0, chosen_M, of_X).view(X.shape)
            rows_X = rows_X.index_select(0, chosen_M)
        return of_X, (spectrum.reshape(-1, P) * rows_X).sum(0), None, None
