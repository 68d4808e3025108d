"""A router that goes by when a token last occurred: attention has something to look up for tokens that recur.

Shapes: B batch, T tokens, P earlier tokens of the same rows.
"""

from typing import ClassVar

import torch
from torch import Tensor

from chiaroscuro.mixers import NO_CONTEXT, Context
from chiaroscuro.routing.router import ThresholdRouter, register_router


def recency(ids_BT: Tensor, known_BT: Tensor | None = None, state: dict[str, Tensor] | None = None) -> Tensor:
    """1 / n for a token whose id last occurred n tokens earlier in its row, (B, T); for one that is new there, behind t
    tokens with an id, -1 / (t + 1), so that of the new ones those come first that have more before them.

    Where `known_BT` is false a token has no id, as padding and embeddings have none: it counts as one that recurs (1),
    since nobody can tell, no later one recurs for it, and it is none of the n or t. `state` carries the ids from call
    to call, for rows that come in pieces.
    """
    past = state["ids"].shape[1] if state else 0
    ids_BT = ids_BT.long()
    if known_BT is not None:
        of_its_own = -1 - torch.arange(past, past + ids_BT.shape[1], device=ids_BT.device)
        ids_BT = torch.where(known_BT, ids_BT, of_its_own)
    if state is not None:
        ids_BT = state["ids"] = torch.cat((state["ids"], ids_BT), 1) if state else ids_BT
    count_BT = (ids_BT >= 0).cumsum(1)  # of the tokens with an id until each, itself included
    back_BT = (_back_of_one if ids_BT.shape[1] == past + 1 else _back)(ids_BT, count_BT)[:, past:]
    near_BT = torch.where(back_BT > 0, 1 / back_BT.float(), -1 / count_BT[:, past:].float())
    return near_BT if known_BT is None else torch.where(known_BT, near_BT, 1.0)


def _back(ids_BT: Tensor, count_BT: Tensor) -> Tensor:
    """How many tokens earlier, by their count, each id last occurred in its row; 0 where it did not."""
    sorted_ids_BT, place_BT = ids_BT.sort(stable=True)
    recurs_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    recurs_BT[:, 1:] = sorted_ids_BT.diff() == 0
    sorted_count_BT = count_BT.gather(1, place_BT)
    back_BT = sorted_count_BT.diff(prepend=sorted_count_BT[:, :1]) * recurs_BT
    return torch.zeros_like(back_BT).scatter(1, place_BT, back_BT)


def _back_of_one(ids_BT: Tensor, count_BT: Tensor) -> Tensor:
    """The same for the last token of each row alone, without a sort: as in generation, token by token."""
    back_BT = torch.zeros_like(ids_BT)
    if ids_BT.shape[1] > 1:
        last_B = ((ids_BT[:, :-1] == ids_BT[:, -1:]) * count_BT[:, :-1]).amax(1)
        back_BT[:, -1] = torch.where(last_B > 0, count_BT[:, -1] - last_B, 0)
    return back_BT


@register_router("recurrence")
class RecurrenceRouter(ThresholdRouter):
    """The second operator for tokens that recur in their row; with a share for so many of all tokens, those that
    occurred last the shortest while ago (`recency`). Nothing is learned. With two operators only."""

    reads_entropy = False
    reads_recency = True
    most_operators = 2
    halves: ClassVar[bool] = False

    def __init__(self, hidden_size: int, num_operators: int, layer: int = 0, share: float | None = None):
        super().__init__(hidden_size, num_operators, layer, share, low=0.0, high=0.0)

    def score(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        if context.recency_BT is None:
            raise ValueError("router 'recurrence' goes by when tokens last occurred: give Context(recency_BT=...)")
        return context.recency_BT

    def choose(self, score_BT: Tensor, context: Context) -> Tensor:
        """As of any router; without a share it is known what recurs, whatever the thresholds."""
        if self.keeps_share or self.share_at_hand is not None:
            return super().choose(score_BT, context)
        return (score_BT > 0).long()
