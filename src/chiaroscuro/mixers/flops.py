"""The convention by which FLOPs are counted, and what a module reports.

Two per multiply-add, forward pass. Softmax attention counts the keys a query may see (causal: half). A real FFT of
length n is 2.5 n log2 n. Elementwise work, norms and softmax are not counted.
"""

import math
from dataclasses import dataclass, fields

from torch import Tensor
from torch.nn.functional import pad

from chiaroscuro.ops.dct import slots


@dataclass(frozen=True)
class Flops:
    """Forward FLOPs by part. `attention` is the product of queries and keys and the weighted sum of values, the part
    that grows with the square of the length and that the paper counts; the projections around it are `mixing`, as is
    all other work of the operators. `routing` is what deciding costs, the transform that entropy needs included."""

    attention: float = 0.0
    mixing: float = 0.0
    routing: float = 0.0
    feed_forward: float = 0.0
    head: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True)
class Work:
    """What an operator is asked to do in one forward pass over a batch, or in the steps of generation.

    tokens: all tokens of the batch. chosen: those whose output is wanted. keys: those that serve as keys and are not in
    a cache. pairs: the (chosen token, key) pairs that may see each other. length: tokens per sequence and call.
    spectrum: whether the DCT of all tokens is already at hand. by_matrix: whether DCTs are products with a matrix
    (`chiaroscuro.ops.dct.by_matrix`). Numbers may be fractions, being expectations when nothing has been routed yet.

    `past` tokens of each sequence were seen before and are in a cache; those behind them come one at a time.
    """

    tokens: float
    chosen: float
    keys: float
    pairs: float
    length: int
    spectrum: bool = False
    by_matrix: bool = False

    @classmethod
    def expected(
        cls,
        batch_size: int,
        length: int,
        share: float = 1.0,
        routed_keys: bool = False,
        spectrum: bool = False,
        past: int = 0,
        window: int | None = None,
    ) -> "Work":
        """A `share` of the tokens chosen, spread evenly over the positions; with `routed_keys` the same tokens are
        keys, with a `window` all that are not too far away."""
        tokens, chosen = batch_size * length, share * batch_size * length
        of_past, of_new = (share * past, share * length) if routed_keys and window is None else (past, length)
        keys, seen = batch_size * of_new, of_past + (of_new + 1) / 2
        if window is not None:
            growing = min(length, max(0, window - past))  # tokens whose windows are not full yet, or just so
            seen = (growing * (past + (growing + 1) / 2) + (length - growing) * window) / length
        return cls(tokens, chosen, keys, chosen * seen, 1 if past else length, spectrum)

    @classmethod
    def measured(
        cls,
        mask_BT: Tensor,
        valid_BT: Tensor,
        routed_keys: bool = False,
        spectrum: bool = False,
        past: int = 0,
        window: int | None = None,
    ) -> "Work":
        """The tokens of `mask_BT` chosen, of which with `routed_keys` each serves as key, and otherwise all valid
        ones, or with a `window` those of them that are not too far away."""
        key_BT = mask_BT if routed_keys and window is None else valid_BT
        seen_BT = key_BT.cumsum(1)
        if window is not None:
            T = seen_BT.shape[1]
            seen_BT = seen_BT - pad(seen_BT, (min(window, T), 0))[:, :T]
        tokens, chosen, keys, pairs = (
            float(x_BT[:, past:].sum()) for x_BT in (valid_BT, mask_BT, key_BT, seen_BT * mask_BT)
        )
        return cls(tokens, chosen, keys, pairs, 1 if past else mask_BT.shape[1], spectrum)

    def transforms(self, rows: float, D: int) -> float:
        """FLOPs of the DCTs of so many tokens."""
        return linear_flops(rows, D, slots(D)) if self.by_matrix else fft_flops(rows, D)


def linear_flops(rows: float, inputs: int, outputs: int) -> float:
    return 2.0 * rows * inputs * outputs


def fft_flops(rows: float, length: int) -> float:
    return rows * 2.5 * length * math.log2(length) if length > 1 else 0.0
