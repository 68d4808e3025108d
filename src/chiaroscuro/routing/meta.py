"""MetaRouter: how much of the first layer to use at all (paper, section 2, v2).

Shapes: B batch, T tokens, D model channels.
"""

import warnings
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init


class MetaRouter(nn.Module):
    """g = sigmoid(Linear(mean of embeddings)), by which the caller blends h = g * layer(x) + (1 - g) * x.

    mode "causal": the mean over the prefix of the same row, a gate per token. mode "paper": the mean over all
    positions and over the batch, one gate for all. The latter LEAKS: every logit depends on later tokens and on the
    other sequences of the batch, so its perplexities are not those of a language model. It is kept to reproduce the
    paper.
    """

    def __init__(self, hidden_size: int, mode: Literal["causal", "paper"] = "causal"):
        super().__init__()
        if mode == "paper":
            warnings.warn("meta_router='paper' reads later tokens and other sequences: its logits leak", stacklevel=2)
        self.mode = mode
        self.gate = nn.Linear(hidden_size, 1, bias=False)
        # A parameter of this module, not of the Linear, whose bias transformers sets to zero after everything else.
        self.bias = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The bias starts at 2, so that g starts at 0.88."""
        init.constant_(self.bias, 2.0)

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None, state: dict[str, Tensor] | None = None) -> Tensor:
        """Gates (B, T, 1) in mode "causal", (1, 1, 1) in mode "paper". `state` carries the prefix from call to call.

        The score of a mean is the mean of the scores, so that vectors need not be summed.
        """
        score_BT = self.gate(x_BTD).squeeze(-1)
        # In bfloat16 a count would stop at 256, so prefixes are summed in float32 at least.
        score_BT = score_BT if x_BTD.dtype == torch.float64 else score_BT.float()
        counted_BT = torch.ones_like(score_BT) if valid_BT is None else valid_BT.to(score_BT.dtype)
        score_BT = score_BT * counted_BT
        if self.mode == "paper":
            mean = (score_BT.sum() / counted_BT.sum().clamp_min(1.0)).view(1, 1)
        else:
            sums_BT, counts_BT = score_BT.cumsum(1), counted_BT.cumsum(1)
            if state is not None:
                if state:
                    sums_BT, counts_BT = sums_BT + state["sum_B"][:, None], counts_BT + state["count_B"][:, None]
                state["sum_B"], state["count_B"] = sums_BT[:, -1], counts_BT[:, -1]
            mean = sums_BT / counts_BT.clamp_min(1.0)
        return (mean + self.bias).sigmoid().to(x_BTD.dtype)[..., None]
