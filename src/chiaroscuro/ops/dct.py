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
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chiaroscuro.ops.checks import require_finite

# Elements of the rows that stay in the cache. Time goes by passes over memory, so all of them are made over so many
# rows before the next are looked at.
AT_A_TIME = 2**18


def dct(x: Tensor) -> Tensor:
    """Orthonormal DCT-II of the last axis (the transform of paper section 1, made orthonormal).

    x: (..., D) real, any D >= 1, odd too. Returns (..., D) in the dtype of x; bfloat16 and float16 are computed in
        float32. Raises ValueError for integer, complex or empty input, and for NaN or infinity on the CPU.
    """
    _check("dct", x)
    X = _Forward.apply(_computed(x))
    require_finite("dct", X[..., 0])  # every sample goes into it, so it tells of all
    tables = _tables_for(x.shape[-1], X)
    return (X.index_select(-1, tables.slot_D) * tables.sign_P[tables.slot_D]).to(x.dtype)


def idct(X: Tensor) -> Tensor:
    """Inverse of `dct` (an orthonormal DCT-III) over the last axis; same shapes, dtypes and errors."""
    _check("idct", X)
    computed = _computed(X)
    packed = computed.index_select(-1, _tables_for(X.shape[-1], computed).coefficient_P)
    x = _Inverse.apply(packed * _tables_for(X.shape[-1], computed).sign_P, X.shape[-1])
    require_finite("idct", x[..., 0])
    return x.to(X.dtype)


def packed_dct(x: Tensor) -> Tensor:
    """`dct` of x (..., D) left in the order of the FFT, (..., P), in float32 or float64; same errors."""
    _check("packed_dct", x)
    X = _Forward.apply(_computed(x))
    require_finite("packed_dct", X[..., 0])
    return X


def packed_idct(X: Tensor, D: int) -> Tensor:
    """Vectors (..., D) from their packed spectrum (..., P). Raises ValueError when P does not belong to D."""
    _check("packed_idct", X)
    if X.shape[-1] != _slots(D):
        raise ValueError(f"packed_idct: {D} channels have {_slots(D)} slots, got shape {tuple(X.shape)}")
    x = _Inverse.apply(_computed(X), D)
    require_finite("packed_idct", x[..., 0])
    return x


def packed_filter(w_D: Tensor) -> Tensor:
    """Factors (P,) for a packed spectrum, from one factor per coefficient (D,)."""
    return w_D.index_select(0, _tables_for(w_D.shape[0], w_D).coefficient_P)


def _check(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"{name}: expected a real floating-point tensor, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name}: the last axis must hold at least one channel, got shape {tuple(x.shape)}")


def _computed(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _slots(D: int) -> int:
    return 2 * (D // 2 + 1)


class _Tables(NamedTuple):
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


def _make_tables(D: int, dtype: torch.dtype, device: torch.device) -> _Tables:
    channels = torch.arange(D, device=device)
    sample_D = torch.cat((channels[::2], channels[1::2].flip(0)))
    k = torch.arange(D // 2 + 1, device=device)
    turn = torch.polar((2.0 - (k == 0).to(dtype)).sqrt(), k.to(dtype) * (-math.pi / (2 * D)))
    back = turn.reciprocal()
    sign = torch.tensor([1.0, -1.0], dtype=dtype, device=device).repeat(D // 2 + 1, 1)
    sign[0, 1] = 0.0
    if D % 2 == 0:
        # The number in the middle is real and holds one coefficient, in its real part.
        sign[-1, 1] = 0.0
        back[-1] = 1.0
    coefficient_P = torch.stack((k, (D - k) % D), dim=-1).flatten()
    slots = torch.arange(len(coefficient_P), device=device)
    held = sign.flatten() != 0
    slot_D = torch.zeros_like(channels).index_put((coefficient_P[held],), slots[held])
    return _Tables(sample_D, sample_D.argsort(), turn, back, coefficient_P, sign.flatten(), slot_D)


_kept_tables = lru_cache(maxsize=16)(_make_tables)


def _tables_for(D: int, x: Tensor) -> _Tables:
    """Kept, unless x is of a kind that stands for tensors without being one."""
    plain = type(x) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
    with torch.no_grad():
        return (_kept_tables if plain else _make_tables)(D, x.dtype, x.device)


def rows_at_a_time(x: Tensor) -> int:
    """How many vectors of x (..., D) to take at a time: on the CPU those that stay in the cache."""
    return max(1, AT_A_TIME // x.shape[-1] if x.device.type == "cpu" else x.numel() // x.shape[-1])


def _by_rows(transform: Callable[..., None], x: Tensor, size: int, tables: _Tables) -> Tensor:
    """`transform` of all vectors, to vectors of `size`. It is given some of them, where to write their transforms, and
    memory of the shape of its input: what is allocated anew is slower to write to."""
    out = x.new_empty(*x.shape[:-1], size)
    if not x.numel():
        return out
    rows, into = x.reshape(-1, x.shape[-1]), out.view(-1, size)
    number = rows_at_a_time(x)
    spare = x.new_empty(min(number, len(rows)), x.shape[-1])
    for part, place in zip(rows.split(number), into.split(number), strict=True):
        transform(part, place, spare[: len(part)], tables)
    return out


def _forward(x: Tensor, X: Tensor, samples: Tensor, tables: _Tables) -> None:
    torch.index_select(x, -1, tables.sample_D, out=samples)
    torch.mul(torch.fft.rfft(samples, norm="ortho"), tables.turn, out=_as_complex(X))
    if x.shape[-1] % 2 == 0:
        X[..., -1] = 0.0


def _inverse(X: Tensor, x: Tensor, numbers: Tensor, tables: _Tables) -> None:
    torch.mul(_as_complex(X), tables.back, out=_as_complex(numbers))
    samples = torch.fft.irfft(_as_complex(numbers), n=x.shape[-1], norm="ortho")
    torch.index_select(samples, -1, tables.place_D, out=x)


def _as_complex(X: Tensor) -> Tensor:
    return torch.view_as_complex(X.unflatten(-1, (-1, 2)))


@lru_cache(maxsize=8)
def _matrix(D: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(D, P): the packed spectrum of each unit vector."""
    with torch.no_grad():
        return _by_rows(_forward, torch.eye(D, dtype=dtype, device=device), _slots(D), _kept_tables(D, dtype, device))


def _is_one_vector(x: Tensor) -> bool:
    """Whether a product with the matrix is faster than the small steps of an FFT: for one vector of moderate length, as
    a step of generation has it."""
    return x.numel() == x.shape[-1] <= 1024 and type(x) is Tensor and not torch.compiler.is_compiling()


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        D = x.shape[-1]
        if _is_one_vector(x):
            return x @ _matrix(D, x.dtype, x.device)
        return _by_rows(_forward, x, _slots(D), _tables_for(D, x))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.channels = inputs[0].shape[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Inverse.apply(grad, ctx.channels)


class _Inverse(torch.autograd.Function):
    """What stands in slots that hold nothing is ignored."""

    @staticmethod
    def forward(X: Tensor, D: int) -> Tensor:
        if _is_one_vector(X):
            return X @ _matrix(D, X.dtype, X.device).T
        return _by_rows(_inverse, X, D, _tables_for(D, X))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Forward.apply(grad), None
