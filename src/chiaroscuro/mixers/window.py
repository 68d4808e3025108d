"""Attention to the last few tokens (sliding-window attention).

Shapes: B batch, T tokens, D model channels, M chosen tokens.
"""

from typing import Any, Self

from torch import Tensor

from chiaroscuro.mixers.attention import AttentionMixer, attention_weights, lay_out_heads, nothing_wanted
from chiaroscuro.mixers.base import NO_CONTEXT, Context, register_mixer
from chiaroscuro.ops import Chosen, window_attention


@register_mixer("window")
class WindowMixer(AttentionMixer):
    """Self-attention in which each token sees the last `window` tokens, itself included: what is local of attention,
    at a cost that grows with the length and not with its square.

    All tokens are keys, whatever `attention_keys` says, and in generation all keys are kept. Projections of queries and
    outputs are computed for chosen tokens only, windows for all: they are small, and cheaper than sorting them out.
    Raises ValueError for a window without a token.
    """

    window: int
    reads_mask = False

    def __init__(self, hidden_size: int, num_heads: int, window: int, dropout: float = 0.0):
        super().__init__(hidden_size, num_heads, dropout=dropout)
        if window < 1:
            raise ValueError(f"a window has one token at least, got {window}")
        self.window = window

    @classmethod
    def from_config(cls, config: Any) -> Self:
        return cls(config.hidden_size, config.num_attention_heads, config.window, config.attention_dropout)

    def forward(self, x_BTD: Tensor, chosen: Chosen | None = None, context: Context = NO_CONTEXT) -> Tensor:
        if chosen is not None and chosen.Q == 0 and nothing_wanted(context):
            self.remember(x_BTD, context)
            return x_BTD.new_empty(0, x_BTD.shape[2])
        usable_BK = self._mark_usable(x_BTD, None, context)
        k, v = self._keys_and_values(x_BTD, None, context)
        q = lay_out_heads(self._split(self._queries(x_BTD, chosen)), context.rotary, None)
        out = window_attention(q, k, v, self.window, usable_BK, self._dropout).transpose(1, 2).flatten(2)
        if context.attentions is not None:
            routed_BT = context.routed_BT if chosen is None else chosen.mask_BT
            visible_BT = self._visible(x_BTD, None, None, k.shape[2] - x_BTD.shape[1], k.shape[2])
            visible_BT = visible_BT if routed_BT is None else visible_BT * routed_BT
            context.attentions.append(attention_weights(q, k, visible_BT, usable_BK, window=self.window))
        return self.out(out if chosen is None else chosen.take(out))

    def _queries(self, x_BTD: Tensor, chosen: Chosen | None) -> Tensor:
        """(B, T, D), zero where no query is wanted."""
        if chosen is None:
            return self.query(x_BTD)
        return chosen.scatter(self.query(chosen.take(x_BTD)))
