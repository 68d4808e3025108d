"""Short convolution of all tokens, whatever they are routed to afterwards.

Shapes: B batch, T tokens, D model channels, W taps, E = W - 1 tokens before the first.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from chiaroscuro.mixers.base import NO_CONTEXT, Context
from chiaroscuro.mixers.flops import Flops, linear_flops
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
        """(B, T, D). Padding is left as it is, and is not there for others: the tokens on its two sides are
        neighbours."""
        valid_BT = context.valid_BT
        if valid_BT is None:
            return x_BTD + short_convolution(x_BTD, self.weight_WD, self._before(x_BTD, None, context.state))
        B, T, D = x_BTD.shape
        place_BT = torch.where(valid_BT, valid_BT.cumsum(1) - 1, T)  # padding has one of its own, behind the tokens
        row_B = torch.arange(B, device=x_BTD.device)[:, None]
        flat = (row_B * (T + 1) + place_BT).flatten()  # of whole rows
        packed_BTD = x_BTD.new_zeros(B * (T + 1), D).index_copy(0, flat, x_BTD.flatten(0, 1)).view(B, T + 1, D)[:, :T]
        before_BED = self._before(packed_BTD, valid_BT.sum(1), context.state)
        mixed_BTD = short_convolution(packed_BTD, self.weight_WD, before_BED)
        back = (row_B * T + place_BT.clamp_max(T - 1)).flatten()
        return x_BTD + mixed_BTD.flatten(0, 1).index_select(0, back).view(B, T, D) * valid_BT[..., None]

    def _before(self, packed_BTD: Tensor, count_B: Tensor | None, state: dict[str, Tensor] | None) -> Tensor | None:
        """The tokens before these, and the last of these remembered in their place; of each row only the first
        `count_B` where that is given."""
        if state is None:
            return None
        B, _, D = packed_BTD.shape
        earlier = len(self.weight_WD) - 1
        before_BED = state.get("before", packed_BTD.new_zeros(B, earlier, D))
        known = torch.cat((before_BED, packed_BTD), dim=1)
        if count_B is None:
            state["before"] = known[:, known.shape[1] - earlier :].clone()  # and not the whole text with it
        else:
            last_BE = count_B[:, None] + torch.arange(earlier, device=packed_BTD.device)
            state["before"] = known.gather(1, last_BE[..., None].expand(B, earlier, D))
        return before_BED

    def flops(self, tokens: float) -> Flops:
        return Flops(mixing=linear_flops(tokens, *self.weight_WD.shape))
