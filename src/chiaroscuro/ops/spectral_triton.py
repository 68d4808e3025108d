"""Transform and entropy, and filter and inverse, on a GPU, in Triton: each pair in one pass over memory.

A transform is a product with the matrix of its cosines. An FFT takes fewer multiplications, but with all that belongs
to it reads and writes every token a dozen times, and a GPU multiplies many numbers in the time in which it moves one.
Tokens in half precision are multiplied as TF32, which holds them exactly and rounds the cosines; single precision, and
every spectrum, as three products of TF32, which together are as exact as itself.

Shapes: M tokens, D channels, P slots of a packed spectrum (`chiaroscuro.ops.dct`).
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _tile(matrix, rows, columns, number, width):
    """Some rows and columns of a matrix whose rows lie behind each other, zero beyond its bounds, in float32."""
    inside = (rows < number)[:, None] & (columns < width)[None, :]
    return tl.load(matrix + rows[:, None] * width + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _spectrum_kernel(
    x, matrix, X, entropy, M, dc_weight, shortest, tiny, to_unit, D: tl.constexpr, P: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    for d in range(0, D, BLOCK_D):
        part = _tile(x, rows, d + tl.arange(0, BLOCK_D), M, D)
        squares += tl.sum(part * part, 1)
    length = tl.sqrt(squares)  # that of the spectrum as well
    shrink = tl.where(length > shortest, 1.0 / length, 0.0)
    total = tl.zeros((BLOCK_M,), tl.float32)
    logs = tl.zeros((BLOCK_M,), tl.float32)
    for p in range(0, P, BLOCK_P):
        slots = p + tl.arange(0, BLOCK_P)
        part_X = tl.zeros((BLOCK_M, BLOCK_P), tl.float32)
        for d in range(0, D, BLOCK_D):
            channels = d + tl.arange(0, BLOCK_D)
            cosines = _tile(matrix, channels, slots, D, P)
            part_X += tl.dot(_tile(x, rows, channels, M, D), cosines, input_precision=PRECISION)
        tl.store(X + rows[:, None] * P + slots[None, :], part_X, mask=(rows < M)[:, None] & (slots < P)[None, :])
        unit = part_X * shrink[:, None]
        energy = unit * unit * tl.where(slots == 0, dc_weight, 1.0)[None, :]
        total += tl.sum(energy, 1)
        logs += tl.sum(energy * tl.log(tl.maximum(energy, tiny)), 1)
    sum_of_all = tl.where(total > 0.0, total, 1.0)
    nats = tl.log(sum_of_all) - logs / sum_of_all
    tl.store(entropy + rows, tl.where(shrink > 0.0, tl.clamp(nats * to_unit, 0.0, 1.0), 0.0), mask=rows < M)


@triton.jit
def _inverse_kernel(
    X, matrix, weights, chosen, x, M, CHOSEN: tl.constexpr, WEIGHTED: tl.constexpr, D: tl.constexpr, P: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    places = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    rows = tl.load(chosen + places, mask=places < M, other=0) if CHOSEN else places
    inside = (places < M)[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for p in range(0, P, BLOCK_P):
        slots = p + tl.arange(0, BLOCK_P)
        spectrum = tl.load(X + rows[:, None] * P + slots[None, :], mask=inside & (slots < P)[None, :], other=0.0)
        if WEIGHTED:
            spectrum *= tl.load(weights + slots, mask=slots < P, other=0.0)[None, :]
        cosines = _tile(matrix, channels, slots, D, P)
        acc += tl.dot(spectrum, tl.trans(cosines), input_precision=PRECISION)
    tl.store(x + places[:, None] * D + channels[None, :], acc, mask=inside & (channels < D)[None, :])


def spectrum(x_MD: Tensor, matrix_DP: Tensor, dc_weight: float) -> tuple[Tensor, Tensor]:
    """Packed spectra (M, P) and entropies (M,) in float32, of x in any precision up to that."""
    (M, D), P = x_MD.shape, matrix_DP.shape[1]
    X, entropy = x_MD.new_empty(M, P, dtype=torch.float32), x_MD.new_empty(M, dtype=torch.float32)
    tiny = torch.finfo(torch.float32).tiny
    if M:
        options = _options(x_MD)
        with torch.cuda.device_of(x_MD):
            _spectrum_kernel[(triton.cdiv(M, options["BLOCK_M"]),)](
                x_MD.contiguous(), matrix_DP, X, entropy, M, dc_weight, math.sqrt(tiny), tiny,
                1.0 / math.log(max(D, 2)), D=D, P=P, **options,
            )  # fmt: skip
    return X, entropy


def inverse(X_MP: Tensor, matrix_DP: Tensor, w_P: Tensor | None, chosen_M: Tensor | None) -> Tensor:
    """Vectors in float32 from their packed spectra, each slot multiplied by its weight: of all rows of X, or of those
    that `chosen_M` lists."""
    D, P = matrix_DP.shape
    M = len(X_MP) if chosen_M is None else len(chosen_M)
    x = X_MP.new_empty(M, D)
    if M:
        options = _options(X_MP)
        # Without weights or a choice the kernel is given something that it does not read.
        weights, chosen = matrix_DP if w_P is None else w_P, matrix_DP if chosen_M is None else chosen_M
        with torch.cuda.device_of(X_MP):
            _inverse_kernel[(triton.cdiv(M, options["BLOCK_M"]), triton.cdiv(D, options["BLOCK_D"]))](
                X_MP.contiguous(), matrix_DP, weights, chosen, x, M,
                CHOSEN=chosen_M is not None, WEIGHTED=w_P is not None, D=D, P=P, **options,
            )  # fmt: skip
    return x


def _options(x: Tensor) -> dict[str, Any]:
    precision = "tf32x3" if x.dtype == torch.float32 else "tf32"
    return {"BLOCK_M": 32, "BLOCK_D": 64, "BLOCK_P": 64, "PRECISION": precision}
