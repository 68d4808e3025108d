"""A router that goes by when a token last occurred: attention has something to look up for tokens that recur.

Shapes: B batch, T tokens.
"""

import torch
from torch import Tensor

from chiaroscuro.mixers import NO_CONTEXT, Context
from chiaroscuro.routing.router import ThresholdRouter, register_router


def recency(ids_BT: Tensor, known_BT: Tensor | None = None, state: dict[str, Tensor] | None = None) -> Tensor:
    """1 / n for a token whose id last occurred n tokens earlier in its row, (B, T); for one that is new there, as the
    t-th of the row, -1 / t, so that of these the later ones, which have more before them, come first.

    Where `known_BT` is false, as at padding, a token has no id: it is new, and no later one recurs for it. `state`
    carries the ids from call to call, for rows that come in pieces.
    """
    past = state["ids"].shape[1] if state else 0
    ids_BT = ids_BT.long()
    if known_BT is not None:
        of_its_own = -1 - torch.arange(past, past + ids_BT.shape[1], device=ids_BT.device)
        ids_BT = torch.where(known_BT, ids_BT, of_its_own)
    if state is not None:
        ids_BT = state["ids"] = torch.cat((state["ids"], ids_BT), 1) if state else ids_BT
    sorted_ids_BT, place_BT = ids_BT.sort(stable=True)
    recurs_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    recurs_BT[:, 1:] = sorted_ids_BT.diff() == 0
    back_BT = place_BT.diff(prepend=place_BT[:, :1] - 1)
    found_BT = torch.where(recurs_BT, 1.0 / back_BT, -1.0 / (place_BT + 1))
    return torch.zeros_like(found_BT).scatter(1, place_BT, found_BT)[:, past:]


@register_router("recurrence")
class RecurrenceRouter(ThresholdRouter):
    """The second operator for tokens that recur in their row; with a share for so many of all tokens, those that
    occurred last the shortest while ago (`recency`). Nothing is learned. With two operators only."""

    reads_entropy = False
    reads_recency = True
    most_operators = 2

    def __init__(self, hidden_size: int, num_operators: int, layer: int = 0, share: float | None = None):
        super().__init__(hidden_size, num_operators, layer, share, low=0.0, high=0.0)

    def score(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        if context.recency_BT is None:
            raise ValueError("router 'recurrence' goes by when tokens last occurred: give Context(recency_BT=...)")
        return context.recency_BT

    @property
    def quantiles(self) -> tuple[float, float] | None:
        """As of any router; without a share the thresholds part what recurs from what is new."""
        return None if self.share is None and self.dense == 0.0 else super().quantiles
