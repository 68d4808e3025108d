"""DCT spectral mixing: a learned filter on the channel spectrum of each token.

Shapes: B batch, T tokens, D model channels, M chosen tokens.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import initialization as init

from chiaroscuro.mixers.base import NO_CONTEXT, Context, Mixer, register_mixer
from chiaroscuro.mixers.flops import Flops, Work
from chiaroscuro.ops import Chosen, filtered_idct, packed_dct


@register_mixer("dct")
class DCTMixer(Mixer):
    """y = iDCT(w * DCT(x)) over the channels, w learned (paper, section 1). Tokens are not mixed with each other.

    `start` is the initial value of w: 1 makes the operator the identity, 0 makes it nothing until it has learned.
    """

    def __init__(self, hidden_size: int, start: float = 1.0):
        super().__init__()
        self.hidden_size = hidden_size
        self.start = start
        self.filter = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    @classmethod
    def from_config(cls, config: Any) -> Self:
        return cls(config.hidden_size, config.dct_filter_start)

    def reset_parameters(self) -> None:
        init.constant_(self.filter, self.start)

    def forward(self, x_BTD: Tensor, chosen: Chosen | None = None, context: Context = NO_CONTEXT) -> Tensor:
        if context.spectrum_BTP is not None:
            chosen_M = None if chosen is None else chosen.flat_M
            return filtered_idct(context.spectrum_BTP, self.filter, chosen_M).to(x_BTD.dtype)
        tokens = x_BTD if chosen is None else chosen.take(x_BTD)
        return filtered_idct(packed_dct(tokens), self.filter).to(x_BTD.dtype)

    def flops(self, work: Work) -> Flops:
        transforms = 1 if work.spectrum else 2
        return Flops(mixing=transforms * work.transforms(work.chosen, self.hidden_size))
