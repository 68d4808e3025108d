"""The position-wise feed-forward network, with the interface of a mixer so that it can be run on chosen tokens.

Shapes: B batch, T tokens, D model channels, M chosen tokens.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from chiaroscuro.mixers.base import NO_CONTEXT, Context, Mixer
from chiaroscuro.mixers.flops import Flops, Work, linear_flops
from chiaroscuro.ops import Chosen

# Numbers between the two projections at a time, where they need not be kept. Memory beyond 32 MB is handed back to the
# system after each use, and costs as much to get again as the smaller of the projections.
AT_A_TIME = 2**22


class FeedForward(Mixer):
    """Linear, GELU, dropout, linear. Inference on the CPU takes some tokens at a time, for the memory in between."""

    def __init__(self, hidden_size: int, intermediate_size: int, dropout: float = 0.0):
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(intermediate_size, hidden_size)

    @classmethod
    def from_config(cls, config: Any) -> Self:
        return cls(config.hidden_size, config.intermediate_size, config.dropout)

    def forward(self, x_BTD: Tensor, chosen: Chosen | None = None, context: Context = NO_CONTEXT) -> Tensor:
        rows = x_BTD if chosen is None else chosen.take(x_BTD)
        number = AT_A_TIME // self.up.out_features
        if torch.is_grad_enabled() or rows.device.type != "cpu" or rows[..., 0].numel() <= number:
            return self._network(rows)
        return torch.cat([self._network(part) for part in rows.flatten(0, -2).split(number)]).view(rows.shape)

    def _network(self, rows: Tensor) -> Tensor:
        return self.down(self.dropout(self.activation(self.up(rows))))

    def flops(self, work: Work) -> Flops:
        return Flops(feed_forward=2 * linear_flops(work.chosen, self.up.in_features, self.up.out_features))
