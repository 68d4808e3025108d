"""Attention of chosen queries on a GPU, in Triton.

Each query sees a number of leading keys of its own, and the queries of a row ascend in that number, but for padding
queries, which see none and may stand anywhere. So a block of queries goes over the keys up to the last that any of them
sees, without a mask as far as all of them see; in the backward pass a block of keys goes over the queries from the
first that sees any of it. Scores are never written to memory, and bounds are read on the device: the host waits for
nothing. (The scheme is that of T. Dao, "FlashAttention-2", arXiv 2307.08691.)

Log-sum-exps are to the base of two here, and infinite for a query that sees nothing, whose weights are then all zero.

Shapes: B batch, N heads, Q queries, K keys, H head channels.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from chiaroscuro.ops.accelerator import rounds_to_tf32

LOG2_E = 1.4426950408889634
WIDEST_HEAD = 128  # of wider heads the blocks do not fit into the memory of a multiprocessor


@triton.jit
def _place(N, size, BLOCK: tl.constexpr):
    """Which row, head and block of `size` queries or keys a program is for, in numbers large enough for places in
    tensors of more than 2^31. There is one axis of programs, as others may not have more than 65,535."""
    blocks = tl.cdiv(size, BLOCK)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    return pair // N, pair % N, tl.program_id(0) % blocks


@triton.jit
def _rows(tensor, stride_b, stride_n, stride_t, b, n, t, size, h, H: tl.constexpr):
    """Rows t of one head, (block, BLOCK_H), zero beyond `size` rows and H channels."""
    places = tensor + b * stride_b + n * stride_n + t[:, None].to(tl.int64) * stride_t + h[None, :]
    return tl.load(places, mask=(t < size)[:, None] & (h < H)[None, :], other=0.0)


@triton.jit
def _bounds(seen, K, HAS_VALID: tl.constexpr, BLOCK_K: tl.constexpr):
    """Up to which key all of a block of queries see, in whole blocks of keys, and up to which any of them does."""
    most = tl.max(seen, 0)
    least = tl.min(tl.where(seen > 0, seen, K), 0)
    return 0 if HAS_VALID else tl.minimum(least, most) // BLOCK_K * BLOCK_K, most


@triton.jit
def _visible(seen, keys, valid, b, K, HAS_VALID: tl.constexpr):
    """Which keys each query may see, (queries, keys)."""
    mask = keys[None, :] < seen[:, None]
    if HAS_VALID:
        mask = mask & (tl.load(valid + b * K + keys, mask=keys < K, other=0) != 0)[None, :]
    return mask


@triton.jit
def _forward_kernel(
    q, k, v, visible, valid, out, lse, q_b, q_n, q_t, k_b, k_n, k_t, v_b, v_n, v_t, o_b, o_n, o_t, N, Q, K, scale,
    HAS_VALID: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    b, n, block = _place(N, Q, BLOCK_Q)
    queries, h = block * BLOCK_Q + tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_H)
    seen = tl.load(visible + b * Q + queries, mask=queries < Q, other=0)
    q_tile = _rows(q, q_b, q_n, q_t, b, n, queries, Q, h, H)
    acc = tl.zeros((BLOCK_Q, BLOCK_H), tl.float32)
    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    all_see, any_sees = _bounds(seen, K, HAS_VALID, BLOCK_K)
    for masked in tl.static_range(2):
        for start in range(all_see * masked, all_see + (any_sees - all_see) * masked, BLOCK_K):
            keys = start + tl.arange(0, BLOCK_K)
            k_tile = _rows(k, k_b, k_n, k_t, b, n, keys, K, h, H)
            v_tile = _rows(v, v_b, v_n, v_t, b, n, keys, K, h, H)
            score = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale
            if masked:
                score = tl.where(_visible(seen, keys, valid, b, K, HAS_VALID), score, float("-inf"))
            new_top = tl.maximum(top, tl.max(score, 1))
            base = tl.where(new_top == float("-inf"), 0.0, new_top)  # a query that has seen nothing yet
            weight, shrink = tl.exp2(score - base[:, None]), tl.exp2(top - base)
            total = total * shrink + tl.sum(weight, 1)
            acc = acc * shrink[:, None] + tl.dot(weight.to(v_tile.dtype), v_tile, input_precision=PRECISION)
            top = new_top
    sees = (seen > 0) & (total > 0.0)
    result = tl.where(sees[:, None], acc / tl.where(sees, total, 1.0)[:, None], 0.0)
    places = out + b * o_b + n * o_n + queries[:, None].to(tl.int64) * o_t + h[None, :]
    tl.store(places, result.to(q_tile.dtype), mask=(queries < Q)[:, None] & (h < H)[None, :])
    logarithm = tl.where(sees, top + tl.log2(tl.where(sees, total, 1.0)), float("inf"))
    tl.store(lse + (b * N + n) * Q + queries, logarithm, mask=queries < Q)


@triton.jit
def _query_gradient_kernel(
    q, k, v, gradient, visible, valid, lse, delta, of_q, q_b, q_n, q_t, k_b, k_n, k_t, v_b, v_n, v_t, g_b, g_n, g_t,
    N, Q, K, scale, to_gradient,
    HAS_VALID: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    b, n, block = _place(N, Q, BLOCK_Q)
    queries, h = block * BLOCK_Q + tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_H)
    seen = tl.load(visible + b * Q + queries, mask=queries < Q, other=0)
    q_tile = _rows(q, q_b, q_n, q_t, b, n, queries, Q, h, H)
    g_tile = _rows(gradient, g_b, g_n, g_t, b, n, queries, Q, h, H)
    row = (b * N + n) * Q + queries
    logarithm = tl.load(lse + row, mask=queries < Q, other=float("inf"))
    d = tl.load(delta + row, mask=queries < Q, other=0.0)
    acc = tl.zeros((BLOCK_Q, BLOCK_H), tl.float32)
    all_see, any_sees = _bounds(seen, K, HAS_VALID, BLOCK_K)
    for masked in tl.static_range(2):
        for start in range(all_see * masked, all_see + (any_sees - all_see) * masked, BLOCK_K):
            keys = start + tl.arange(0, BLOCK_K)
            k_tile = _rows(k, k_b, k_n, k_t, b, n, keys, K, h, H)
            v_tile = _rows(v, v_b, v_n, v_t, b, n, keys, K, h, H)
            score = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale
            if masked:
                score = tl.where(_visible(seen, keys, valid, b, K, HAS_VALID), score, float("-inf"))
            weight = tl.exp2(score - logarithm[:, None])
            of_weight = tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION)
            of_score = weight * (of_weight - d[:, None])
            acc += tl.dot(of_score.to(k_tile.dtype), k_tile, input_precision=PRECISION)
    places = of_q + row[:, None] * H + h[None, :]
    tl.store(places, (acc * to_gradient).to(q_tile.dtype), mask=(queries < Q)[:, None] & (h < H)[None, :])


@triton.jit
def _key_gradient_kernel(
    q, k, v, gradient, visible, valid, lse, delta, first, of_k, of_v, q_b, q_n, q_t, k_b, k_n, k_t, v_b, v_n, v_t,
    g_b, g_n, g_t, N, Q, K, scale, to_gradient,
    HAS_VALID: tl.constexpr, H: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    b, n, block = _place(N, K, BLOCK_K)
    keys, h = block * BLOCK_K + tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_H)
    k_tile = _rows(k, k_b, k_n, k_t, b, n, keys, K, h, H)
    v_tile = _rows(v, v_b, v_n, v_t, b, n, keys, K, h, H)
    of_keys = tl.zeros((BLOCK_K, BLOCK_H), tl.float32)
    of_values = tl.zeros((BLOCK_K, BLOCK_H), tl.float32)
    begin = tl.load(first + b * tl.cdiv(K, BLOCK_K) + block) // BLOCK_Q * BLOCK_Q
    for start in range(begin, Q, BLOCK_Q):
        queries = start + tl.arange(0, BLOCK_Q)
        seen = tl.load(visible + b * Q + queries, mask=queries < Q, other=0)
        q_tile = _rows(q, q_b, q_n, q_t, b, n, queries, Q, h, H)
        g_tile = _rows(gradient, g_b, g_n, g_t, b, n, queries, Q, h, H)
        row = (b * N + n) * Q + queries
        logarithm = tl.load(lse + row, mask=queries < Q, other=float("inf"))
        d = tl.load(delta + row, mask=queries < Q, other=0.0)
        score = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale
        score = tl.where(_visible(seen, keys, valid, b, K, HAS_VALID), score, float("-inf"))
        weight = tl.exp2(score - logarithm[:, None])
        of_values += tl.dot(tl.trans(weight).to(g_tile.dtype), g_tile, input_precision=PRECISION)
        of_weight = tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION)
        of_score = weight * (of_weight - d[:, None])
        of_keys += tl.dot(tl.trans(of_score).to(q_tile.dtype), q_tile, input_precision=PRECISION)
    places = ((b * N + n) * K + keys)[:, None] * H + h[None, :]
    inside = (keys < K)[:, None] & (h < H)[None, :]
    tl.store(of_k + places, (of_keys * to_gradient).to(k_tile.dtype), mask=inside)
    tl.store(of_v + places, of_values.to(v_tile.dtype), mask=inside)


def forward(q: Tensor, k: Tensor, v: Tensor, visible_BQ: Tensor, key_valid_BK: Tensor | None, out: Tensor) -> Tensor:
    """Writes outputs to `out` (B, N, Q, H); returns log-sum-exps (B, N, Q)."""
    B, N, Q, H = q.shape
    K = k.shape[2]
    q, k, v = (_channels_together(x) for x in (q, k, v))
    lse = q.new_empty(B, N, Q, dtype=torch.float32)
    options = _options(q, key_valid_BK)
    if Q:
        with torch.cuda.device_of(q):
            _forward_kernel[(triton.cdiv(Q, options["BLOCK_Q"]) * B * N,)](
                q, k, v, *_masks(visible_BQ, key_valid_BK, K), out, lse, *_strides(q, k, v, out), N, Q, K,
                H**-0.5 * LOG2_E, **options,
            )  # fmt: skip
    return lse


def backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    visible_BQ: Tensor,
    key_valid_BK: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    B, N, Q, H = q.shape
    K = k.shape[2]
    gradient, q, k, v = (_channels_together(x) for x in (gradient, q, k, v))
    of_q, of_k, of_v = (x.new_zeros(x.shape) for x in (q, k, v))
    if Q == 0 or K == 0:
        return of_q, of_k, of_v
    delta = (gradient.float() * out.float()).sum(-1).contiguous()
    options = _options(q, key_valid_BK)
    visible_BQ, valid = _masks(visible_BQ, key_valid_BK, K)
    # The first query that sees any key of a block: all from there on do, or are padding.
    starts = torch.arange(0, K, options["BLOCK_K"], device=q.device, dtype=visible_BQ.dtype).expand(B, -1)
    first = torch.searchsorted(visible_BQ.cummax(1).values, starts.contiguous(), right=True)
    scales = (H**-0.5 * LOG2_E, H**-0.5)
    strides = _strides(q, k, v, gradient)
    with torch.cuda.device_of(q):
        _query_gradient_kernel[(triton.cdiv(Q, options["BLOCK_Q"]) * B * N,)](
            q, k, v, gradient, visible_BQ, valid, lse, delta, of_q, *strides, N, Q, K, *scales, **options
        )
        _key_gradient_kernel[(triton.cdiv(K, options["BLOCK_K"]) * B * N,)](
            q, k, v, gradient, visible_BQ, valid, lse, delta, first, of_k, of_v, *strides, N, Q, K, *scales, **options
        )
    return of_q, of_k, of_v


def _options(q: Tensor, key_valid_BK: Tensor | None) -> dict[str, Any]:
    H = q.shape[3]
    exact = q.dtype == torch.float32 and not rounds_to_tf32(q.device)
    # Four tiles of a block fit into the 99 KB of a consumer's multiprocessor.
    block = 64 if q.dtype != torch.float32 else 32 if H <= 64 else 16
    return {
        "HAS_VALID": key_valid_BK is not None,
        "H": H,
        "BLOCK_H": max(16, triton.next_power_of_2(H)),
        "BLOCK_Q": block,
        "BLOCK_K": block,
        "PRECISION": "ieee" if exact else "tf32",
    }


def _masks(visible_BQ: Tensor, key_valid_BK: Tensor | None, K: int) -> tuple[Tensor, Tensor]:
    visible_BQ = visible_BQ.clamp(max=K).contiguous()
    # A kernel without a mask of keys is given something that it does not read.
    return visible_BQ, visible_BQ if key_valid_BK is None else key_valid_BK.contiguous().view(torch.uint8)


def _channels_together(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    """Of batch, head and token."""
    return [stride for x in tensors for stride in x.stride()[:3]]
