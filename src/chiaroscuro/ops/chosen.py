"""Which tokens of a batch an operator is asked for, and moving their rows between the three layouts this needs.

Shapes: B batch, T tokens, Q chosen tokens of the fullest row, M chosen tokens of all rows; `...` any further axes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from chiaroscuro.ops.once import once


class Chosen:
    """The True entries of a (B, T) mask.

    Rows of chosen tokens come flat, (M, ...), in the order of batch and position; that is the layout of everything that
    works on tokens one by one. Operators that relate the tokens of a sequence take them padded, (B, Q, ...), each row's
    chosen tokens first and zeros behind them.

    Counting them waits for an accelerator once, for all masks of the same batch together; nothing else here does.
    """

    def __init__(self, mask_BT: Tensor):
        self.mask_BT = mask_BT
        self._masks, self._index = [mask_BT], 0
        self._counts: list[list[int]] = []  # of each of these masks, once they are known

    @classmethod
    def each(cls, masks: Sequence[Tensor]) -> list["Chosen"]:
        """Of several masks of a batch, (B, T) each."""
        family = [cls(mask_BT) for mask_BT in masks]
        for index, chosen in enumerate(family):
            chosen._masks, chosen._index, chosen._counts = list(masks), index, family[0]._counts
        return family

    @classmethod
    def none(cls, B: int, T: int, device: torch.device) -> "Chosen":
        """No token of B times T."""
        chosen = cls(torch.zeros(B, T, dtype=torch.bool, device=device))
        chosen.__dict__["counts"] = [0] * B
        return chosen

    @once
    def counts(self) -> list[int]:
        """Chosen tokens per row of the batch."""
        if not self._counts:
            self._counts += torch.stack([mask_BT.sum(1) for mask_BT in self._masks]).tolist()
        return self._counts[self._index]

    @once
    def flat_M(self) -> Tensor:
        """Indices of the chosen tokens in the flattened (B * T) batch, ascending."""
        return self.mask_BT.reshape(-1).nonzero_static(size=sum(self.counts)).squeeze(-1)

    @once
    def _padded_M(self) -> Tensor:
        """Indices of the chosen tokens in the flattened (B * Q) padded layout."""
        rank_M = (self.mask_BT.cumsum(1) - 1).reshape(-1)[self.flat_M]
        return self.flat_M // self.mask_BT.shape[1] * self.Q + rank_M

    @once
    def counts_B(self) -> Tensor:
        return self.mask_BT.sum(1)

    @once
    def Q(self) -> int:
        return max(self.counts) if self.counts else 0

    @once
    def _even(self) -> bool:
        """Whether all rows have the same number of chosen tokens, so that both layouts are one in memory."""
        return all(count == self.Q for count in self.counts)

    @once
    def filled_BQ(self) -> Tensor:
        """True where the padded layout holds a chosen token."""
        return torch.arange(self.Q, device=self.mask_BT.device) < self.counts_B[:, None]

    @once
    def place_M(self) -> Tensor:
        """The place of each chosen token in its row."""
        return self.flat_M % self.mask_BT.shape[1]

    def take(self, x: Tensor) -> Tensor:
        """(B, T, ...), or (1, T, ...) where all rows have the same, to flat rows (M, ...)."""
        if len(x) < len(self.mask_BT):
            return x[0].index_select(0, self.place_M)
        return x.flatten(0, 1).index_select(0, self.flat_M)

    def scatter(self, rows: Tensor) -> Tensor:
        """Flat rows (M, ...) to (B, T, ...), zero elsewhere."""
        B, T = self.mask_BT.shape
        return rows.new_zeros(B * T, *rows.shape[1:]).index_copy(0, self.flat_M, rows).unflatten(0, (B, T))

    def pad(self, rows: Tensor) -> Tensor:
        """Flat rows (M, ...) to (B, Q, ...)."""
        if self._even:
            return rows.unflatten(0, (self.mask_BT.shape[0], self.Q))
        shape = self.mask_BT.shape[0], self.Q, *rows.shape[1:]
        return rows.new_zeros(shape).flatten(0, 1).index_copy(0, self._padded_M, rows).view(shape)

    def unpad(self, padded: Tensor) -> Tensor:
        """(B, Q, ...) back to flat rows (M, ...)."""
        if self._even:
            return padded.flatten(0, 1)
        return padded.flatten(0, 1).index_select(0, self._padded_M)
