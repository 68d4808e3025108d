"""Attention of chosen queries on the CPU, from torch's flash kernel.

Queries in the order of what they see form a staircase under which all pairs are to be computed and above which none. It
is cut into tall strips of queries. What the first query of a strip sees, all of them see: a rectangle that needs no
mask. What is left of the strip is a low staircase, which is cut into low strips with a mask each. So most of the work
is done in large unmasked calls, at the speed of attention without a mask. The two results that a query meets are merged
by their log-sum-exp, and the backward pass gives the merged log-sum-exp to the kernel's own backward, which makes each
tile's part of the gradients exact.

Shapes: B batch, N heads, Q queries, K keys, H head channels.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

# Queries of a tall strip: so many the kernel takes in its largest bites, which are its fastest.
TALL = 768
# Queries of a low strip: more compute more pairs in vain, fewer it takes in its smallest bites. What is too little for
# one, and is taken in those anyway, is cut into strips of this many or a few more.
LOW, LOWEST = 192, 64
# Fewer queries or keys are not worth a rectangle, nor are fewer queries worth laying the heads of keys apart.
WORTH = 192
ALIGNED = 16  # keys of a rectangle are a multiple of this, which the matrix products are faster for
ROW_BY_ROW = 256  # from that many queries on, rows of a batch are cut each for itself

_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Tile(NamedTuple):
    """Queries and keys of one kernel call; whether it needs a mask of who sees whom; whether it is the first that these
    queries meet."""

    queries: slice
    keys: slice
    masked: bool
    first: bool

    def of_queries(self, x: Tensor) -> Tensor:
        """Its part of x (B, N, Q, ...)."""
        return x.narrow(2, self.queries.start, self.queries.stop - self.queries.start)

    def of_keys(self, x: Tensor) -> Tensor:
        """Its part of x (B, N, K, ...)."""
        return x.narrow(2, self.keys.start, self.keys.stop - self.keys.start)


def cut_together(visible_BQ: Tensor) -> list[slice]:
    """The rows of a batch, in groups that are cut in the same places."""
    B, Q = visible_BQ.shape
    return [slice(b, b + 1) for b in range(B)] if Q >= ROW_BY_ROW else [slice(0, B)]


def tiles(visible_BQ: Tensor, K: int) -> Iterator[Tile]:
    """The kernel calls for queries of which each sees the first `visible_BQ` of K keys."""
    if not visible_BQ.numel():
        return
    # Padding queries see nothing and may stand anywhere. most[i]: keys seen by any query up to i; least[i]: by every
    # query from i on that sees some.
    most_Q = visible_BQ.amax(0)
    most = most_Q.cummax(0).values.tolist()
    least = visible_BQ.where(visible_BQ > 0, K).min(0).values.flip(0).cummin(0).values.flip(0).tolist()
    seeing = most_Q.nonzero()
    end = int(seeing[-1]) + 1 if len(seeing) else 0
    while end > 0:
        start = end - TALL if end >= TALL + LOWEST else 0
        seen_by_all, alike = least[start], least[start] == most[end - 1]
        if not alike:
            # Short of what all see, so that each low strip with a query that sees has keys.
            seen_by_all = (seen_by_all - 1) // ALIGNED * ALIGNED
        if min(end - start, seen_by_all) < WORTH:
            seen_by_all, alike = 0, False
        if not alike:
            for low, high in pairwise(_low_strips(start, end)):
                last = min(K, -(-most[high - 1] // ALIGNED) * ALIGNED)
                if last > seen_by_all:
                    yield Tile(slice(low, high), slice(seen_by_all, last), True, True)
        # After the low strips, so that their results are merged with it in one step.
        if seen_by_all:
            yield Tile(slice(start, end), slice(0, seen_by_all), False, alike)
        end = start


def _low_strips(start: int, end: int) -> list[int]:
    """Where to cut the queries from `start` to `end`."""
    rest = (end - start) % LOW
    if rest < LOWEST and end - start > rest:
        rest += LOW  # alone it is not worth a call
        return [start, *range(start + rest, end + 1, LOW)]
    parts = max(1, rest // LOWEST)
    return [*(start + rest * part // parts for part in range(parts)), *range(start + rest, end + 1, LOW)]


def computed_pairs(visible_BQ: Tensor, K: int) -> int:
    """Pairs of query and key that the tiles compute; of a masked one, as of a causal kernel, those that are seen."""
    pairs = 0
    for rows in cut_together(visible_BQ):
        for queries, keys, masked, _ in tiles(visible_BQ[rows], K):
            width = keys.stop - keys.start
            seen_BQ = visible_BQ[rows, queries]
            pairs += int((seen_BQ - keys.start).clamp(0, width).sum()) if masked else seen_BQ.numel() * width
    return pairs


def forward(q: Tensor, k: Tensor, v: Tensor, visible_BQ: Tensor, key_valid_BK: Tensor | None, out: Tensor) -> Tensor:
    """Writes outputs to `out` (B, N, Q, H). Returns the log-sum-exp of each query's scores (B, N, Q), arbitrary for one
    that sees nothing."""
    B, N, Q, _ = q.shape
    if int(visible_BQ.max() if B * Q else 0) > k.shape[2]:
        raise ValueError(f"chosen_attention: more visible keys than the {k.shape[2]} given do not fit together")
    k, v = heads_apart(k, Q), heads_apart(v, Q)
    lse = q.new_full((B, N, Q), _low(q), dtype=lse_dtype(q))
    for rows in cut_together(visible_BQ):
        valid_BK = None if key_valid_BK is None else key_valid_BK[rows]
        _attend(q[rows], k[rows], v[rows], visible_BQ[rows], valid_BK, out[rows], lse[rows])
    blind_BNQ = _blind(q, lse, visible_BQ, key_valid_BK)
    if blind_BNQ.any():
        out.masked_fill_(blind_BNQ[..., None], 0.0)
    return lse


def _attend(
    q: Tensor, k: Tensor, v: Tensor, visible_BQ: Tensor, valid_BK: Tensor | None, out: Tensor, lse: Tensor
) -> None:
    """Fill in outputs and log-sum-exps of some rows."""
    masks = _Masks(q, k.shape[2], visible_BQ, valid_BK)
    for tile in tiles(visible_BQ, k.shape[2]):
        mask = masks.of(tile)
        part, part_lse = _kernel(tile.of_queries(q), tile.of_keys(k), tile.of_keys(v), 0.0, False, attn_mask=mask)
        merged, merged_lse = tile.of_queries(out), tile.of_queries(lse)
        if tile.first:
            merged.copy_(part)
            merged_lse.copy_(part_lse)
        else:
            merged.lerp_(part, torch.sigmoid(part_lse - merged_lse).to(part.dtype)[..., None])
            torch.logaddexp(merged_lse, part_lse, out=merged_lse)


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
    blind_BNQ = _blind(q, lse, visible_BQ, key_valid_BK)
    if blind_BNQ.any():
        gradient = gradient.masked_fill(blind_BNQ[..., None], 0.0)
    k, v = heads_apart(k, q.shape[2]), heads_apart(v, q.shape[2])
    dq, dk, dv = q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    for rows in cut_together(visible_BQ):
        valid_BK = None if key_valid_BK is None else key_valid_BK[rows]
        given = [x[rows] for x in (gradient, q, k, v, out, lse, visible_BQ)]
        _attend_backward((dq[rows], dk[rows], dv[rows]), valid_BK, *given)
    return dq, dk, dv


def _attend_backward(
    totals: tuple[Tensor, Tensor, Tensor],
    valid_BK: Tensor | None,
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    visible_BQ: Tensor,
) -> None:
    """Add up the gradients of some rows."""
    masks = _Masks(q, k.shape[2], visible_BQ, valid_BK)
    for tile in tiles(visible_BQ, k.shape[2]):
        mask = masks.of(tile)
        taken = [tile.of_queries(gradient), tile.of_queries(q), tile.of_keys(k), tile.of_keys(v), tile.of_queries(out)]
        parts = _kernel_backward(*taken, tile.of_queries(lse).contiguous(), 0.0, False, attn_mask=mask)
        places = (tile.of_queries(totals[0]), tile.of_keys(totals[1]), tile.of_keys(totals[2]))
        for place, part in zip(places, parts, strict=True):
            place.add_(part)


def heads_apart(x: Tensor, Q: int) -> Tensor:
    """Keys or values x (B, N, K, H), those of a head behind each other; copied only where so many queries read them
    that it pays."""
    return x if Q < WORTH or x.stride()[2:] == (x.shape[3], 1) else x.contiguous()


class _Masks:
    """What is added to the scores of a tile: nothing where a query sees a key, `_low` where it does not.

    A query that sees n of the tile's keys adds n zeros followed by low numbers: a stretch of one long step.
    """

    def __init__(self, q: Tensor, K: int, visible_BQ: Tensor, valid_BK: Tensor | None):
        low = _low(q)
        self.K = K
        self.step = torch.cat((q.new_zeros(K), q.new_full((K,), low)))
        self.start_BQ = K - visible_BQ
        self.invalid_BK = None if valid_BK is None else q.new_zeros(valid_BK.shape).masked_fill(~valid_BK, low)

    def of(self, tile: Tile) -> Tensor | None:
        """(B, 1, queries or 1, keys), or None where nothing is hidden."""
        mask = None
        if tile.masked:
            start_BQ = (self.start_BQ[:, tile.queries] + tile.keys.start).clamp_max_(self.K)
            stretches = self.step.unfold(0, tile.keys.stop - tile.keys.start, 1)
            mask = stretches.index_select(0, start_BQ.view(-1)).view(*start_BQ.shape, -1)
        if self.invalid_BK is not None:
            invalid = self.invalid_BK[:, None, tile.keys]
            mask = invalid if mask is None else mask + invalid
        return None if mask is None else mask[:, None]


def _blind(q: Tensor, lse_BNQ: Tensor, visible_BQ: Tensor, key_valid_BK: Tensor | None) -> Tensor:
    """Queries that see nothing, (B, 1 or N, Q). Rectangles were computed for them too, and are dropped."""
    blind_BNQ = (visible_BQ == 0)[:, None]
    return blind_BNQ if key_valid_BK is None else blind_BNQ | (lse_BNQ <= _low(q) / 2)


def _low(q: Tensor) -> float:
    """A score that weighs nothing beside any other, and still is a number."""
    return -30_000.0 if q.dtype == torch.float16 else -1e30


def lse_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32
