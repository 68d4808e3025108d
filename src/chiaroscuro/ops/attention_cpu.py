"""Attention of chosen queries on the CPU, from torch's flash kernel.

Queries in the order of what they see form a staircase under which all pairs are to be computed and above which none. It
is cut like this: the later half of the queries sees everything that its first query sees, a rectangle that needs no
mask; what is left are two staircases of half the height, of the earlier half and of the later half over the remaining
keys, which are cut in the same way until one is small enough to be a single masked tile. So most of the work is done in
large unmasked calls, at the speed of attention without a mask, and the number of calls grows with the logarithm of what
a call holds. The results of the rectangles that a query meets are merged by their log-sum-exp, and the backward pass
gives the merged log-sum-exp to the kernel's own backward, which makes each rectangle's part of the gradients exact.

Shapes: B batch, N heads, Q queries, K keys, H head channels.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Queries of a masked tile. More compute more pairs in vain; the kernel takes fewer than this in smaller bites, a fifth
# slower. Rectangles hold a multiple of it.
LEAF = 192
ALIGNED = 16  # keys of a rectangle are a multiple of this, which the matrix products are faster for
ROW_BY_ROW = 256  # from that many queries on, rows of a batch are cut each for itself

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Tile(NamedTuple):
    """Rows, queries and keys of one kernel call; whether it needs a mask of who sees whom; whether it is the first that
    these queries meet."""

    rows: slice
    queries: slice
    keys: slice
    masked: bool
    first: bool

    def of_queries(self, x: Tensor) -> Tensor:
        """Its part of x (B, N, Q, ...)."""
        return x[self.rows].narrow(2, self.queries.start, self.queries.stop - self.queries.start)

    def of_keys(self, x: Tensor) -> Tensor:
        """Its part of x (B, N, K, ...)."""
        return x[self.rows].narrow(2, self.keys.start, self.keys.stop - self.keys.start)


def tiles(visible_BQ: Tensor, K: int) -> Iterator[Tile]:
    """The kernel calls for queries of which each sees the first `visible_BQ` of K keys."""
    B, Q = visible_BQ.shape
    apart = Q >= ROW_BY_ROW
    for rows in [slice(b, b + 1) for b in range(B)] if apart else [slice(0, B)]:
        seen_BQ = visible_BQ[rows]
        # Padding queries see nothing, and must not keep the others from being taken together: bounds over the queries
        # from here on, and over those so far.
        most_Q = seen_BQ.amax(0) if len(seen_BQ) > 1 else seen_BQ[0]
        least_Q = seen_BQ.where(seen_BQ > 0, K).amin(0) if len(seen_BQ) > 1 else most_Q.where(most_Q > 0, K)
        least = least_Q.flip(0).cummin(0).values.flip(0).tolist()
        most = most_Q.cummax(0).values.tolist()
        seeing = most_Q.nonzero()
        if len(seeing):
            yield from _cut(rows, least, most, 0, int(seeing[-1]) + 1, 0, K, True)


def computed_pairs(visible_BQ: Tensor, K: int) -> int:
    """Pairs of query and key that the tiles compute; of a masked one, as of a causal kernel, those that are seen."""
    pairs = 0
    for rows, queries, keys, masked, _ in tiles(visible_BQ, K):
        width = keys.stop - keys.start
        seen_BQ = visible_BQ[rows, queries]
        pairs += int((seen_BQ - keys.start).clamp(0, width).sum()) if masked else seen_BQ.numel() * width
    return pairs


def _cut(
    rows: slice, least: list[int], most: list[int], start: int, end: int, key: int, K: int, first: bool
) -> Iterator[Tile]:
    """Tiles for the queries from `start` to `end` and the keys from `key` on."""
    if end - start <= LEAF:
        last = min(K, -(-most[end - 1] // ALIGNED) * ALIGNED)
        if last > key:
            yield Tile(rows, slice(start, end), slice(key, last), True, first)
        return
    middle = end - LEAF * max(1, (end - start) // (2 * LEAF))
    seen_by_all = least[middle] // ALIGNED * ALIGNED
    yield from _cut(rows, least, most, start, middle, key, K, first)
    if seen_by_all > key:
        yield Tile(rows, slice(middle, end), slice(key, seen_by_all), False, first)
        key, first = seen_by_all, False
    yield from _cut(rows, least, most, middle, end, key, K, first)


@torch.library.custom_op("chiaroscuro::tiled_attention", mutates_args=())
def tiled_attention(
    q: Tensor, k: Tensor, v: Tensor, visible_BQ: Tensor, key_valid_BK: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs (B, N, Q, H), and the log-sum-exp of each query's scores (B, N, Q), arbitrary for one that sees nothing.

    As `chiaroscuro.ops.chosen_attention`, on the CPU and without its checks of shape. Opaque to torch.compile.
    """
    B, N, Q, _ = q.shape
    if int(visible_BQ.max() if B * Q else 0) > k.shape[2]:
        raise ValueError(f"chosen_attention: more visible keys than the {k.shape[2]} given do not fit together")
    k, v = k.contiguous(), v.contiguous()  # read many times: faster where heads lie apart
    out = torch.empty_like(q)
    lse = q.new_full((B, N, Q), _low(q), dtype=_lse_dtype(q))
    for tile in tiles(visible_BQ, k.shape[2]):
        mask = _mask(tile, q, visible_BQ, key_valid_BK)
        part, part_lse = _forward(tile.of_queries(q), tile.of_keys(k), tile.of_keys(v), 0.0, False, attn_mask=mask)
        merged, merged_lse = tile.of_queries(out), tile.of_queries(lse)
        if tile.first:
            merged.copy_(part)
            merged_lse.copy_(part_lse)
        else:
            merged.lerp_(part, torch.sigmoid(part_lse - merged_lse).to(part.dtype)[..., None])
            torch.logaddexp(merged_lse, part_lse, out=merged_lse)
    blind_BNQ = _blind(q, lse, visible_BQ, key_valid_BK)
    if blind_BNQ.any():
        out.masked_fill_(blind_BNQ[..., None], 0.0)
    return out, lse


@tiled_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, visible_BQ: Tensor, key_valid_BK: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=_lse_dtype(q))


@torch.library.custom_op("chiaroscuro::tiled_attention_backward", mutates_args=())
def tiled_attention_backward(
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
    blind_BNQ = _blind(q, lse, visible_BQ, key_valid_BK)
    if blind_BNQ.any():
        gradient = gradient.masked_fill(blind_BNQ[..., None], 0.0)
    k, v = k.contiguous(), v.contiguous()
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for tile in tiles(visible_BQ, k.shape[2]):
        mask = _mask(tile, q, visible_BQ, key_valid_BK)
        taken = [tile.of_queries(gradient), tile.of_queries(q), tile.of_keys(k), tile.of_keys(v), tile.of_queries(out)]
        parts = _backward(*taken, tile.of_queries(lse).contiguous(), 0.0, False, attn_mask=mask)
        for total, part in zip((tile.of_queries(dq), tile.of_keys(dk), tile.of_keys(dv)), parts, strict=True):
            total.add_(part)
    return dq, dk, dv


@tiled_attention_backward.register_fake
def _(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    visible_BQ: Tensor,
    key_valid_BK: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
    q, k, v, visible_BQ, key_valid_BK, out, lse = ctx.saved_tensors
    return *tiled_attention_backward(gradient, q, k, v, out, lse, visible_BQ, key_valid_BK), None, None


tiled_attention.register_autograd(_gradients, setup_context=_keep)


def _mask(tile: Tile, q: Tensor, visible_BQ: Tensor, key_valid_BK: Tensor | None) -> Tensor | None:
    """What is added to the scores of a tile, (rows, 1, queries, keys), or None where it is nothing."""
    rows, queries, keys = tile[:3]
    hidden = None
    if tile.masked:
        hidden = torch.arange(keys.start, keys.stop) >= visible_BQ[rows, queries, None]
    if key_valid_BK is not None:
        invalid = ~key_valid_BK[rows, None, keys]
        hidden = invalid.expand(-1, queries.stop - queries.start, -1) if hidden is None else hidden | invalid
    if hidden is None:
        return None
    return torch.where(hidden, q.new_tensor(_low(q)), q.new_tensor(0.0))[:, None]


def _blind(q: Tensor, lse_BNQ: Tensor, visible_BQ: Tensor, key_valid_BK: Tensor | None) -> Tensor:
    """Queries that see nothing, (B, 1 or N, Q). Rectangles were computed for them too, and are dropped."""
    blind_BNQ = (visible_BQ == 0)[:, None]
    return blind_BNQ if key_valid_BK is None else blind_BNQ | (lse_BNQ <= _low(q) / 2)


def _low(q: Tensor) -> float:
    """A score that weighs nothing beside any other, and still is a number."""
    return -30_000.0 if q.dtype == torch.float16 else -1e30


def _lse_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32
