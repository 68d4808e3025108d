"""Short convolution of all tokens, whatever they are routed to afterwards.

Shapes: B batch, T tokens, D model channels, W taps.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from chiaroscuro.mixers.base import NO_CONTEXT, Context
from chiaroscuro.mixers.flops import Flops
from chiaroscuro.ops import short_convolution


class ShortConvolution(nn.Module):
    """y_t = x_t + sum_w weight_w * x_{t-w}, over the token itself and the `width - 1` before it, channel by channel. It
    starts at zero, as the identity."""

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.weight_WD = nn.Parameter(torch.empty(width, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.zeros_(self.weight_WD)

    def forward(self, x_BTD: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """(B, T, D). Padding is not seen by others."""
        seen_BTD = x_BTD if context.valid_BT is None else x_BTD * context.valid_BT[..., None]
        return x_BTD + short_convolution(seen_BTD, self.weight_WD, self._before(seen_BTD, context.state))

    def _before(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> Tensor | None:
        """The tokens before these, and these remembered in their place."""
        if state is None:
            return None
        earlier = len(self.weight_WD) - 1
        before = state.get("before", x_BTD.new_zeros(x_BTD.shape[0], earlier, x_BTD.shape[2]))
        recent = torch.cat((before, x_BTD[:, max(0, x_BTD.shape[1] - earlier) :]), dim=1)
        state["before"] = recent[:, recent.shape[1] - earlier :]
        return before

    def flops(self, tokens: float) -> Flops:
        return Flops(mixing=2.0 * tokens * self.weight_WD.numel())
