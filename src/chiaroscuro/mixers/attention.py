"""Multi-head softmax attention, of all tokens or of chosen ones.

Shapes: B batch, T tokens, Q queries, K keys, D model channels, N heads, H head channels, M chosen tokens.
"""

from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from chiaroscuro.mixers.base import NO_CONTEXT, Context, Mixer, register_mixer
from chiaroscuro.mixers.flops import Flops, Work, linear_flops
from chiaroscuro.mixers.memory import append, mark_usable, recall, wait
from chiaroscuro.ops import Chosen, chosen_attention, packed_attention, rotate


@register_mixer("attention")
class AttentionMixer(Mixer):
    """Full self-attention (paper, section 1), with rotary positions where the context brings them.

    keys: "all": a chosen token sees every earlier token, whose keys and values are computed and cached even when it is
    routed elsewhere; in generation when somebody asks, for all that wait at once. "routed": it sees the earlier tokens
    that were themselves chosen, and nothing is computed or cached for the others. When all tokens attend to all, the
    attention implementation of the configuration is used (transformers' attention interface), SDPA by default.
    """

    remembers = True
    reads_mask = True

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        keys: Literal["all", "routed"] = "all",
        dropout: float = 0.0,
        causal: bool = True,
        config: Any = None,
    ):
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"hidden size {hidden_size} does not divide into {num_heads} heads")
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.keys = keys
        self.dropout = dropout
        self.causal = causal
        self.config = config
        self.num_key_value_groups = 1  # read by transformers' attention functions
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    @classmethod
    def from_config(cls, config: Any) -> Self:
        return cls(
            config.hidden_size,
            config.num_attention_heads,
            config.attention_keys,
            config.attention_dropout,
            config=config,
        )

    def forward(self, x_BTD: Tensor, chosen: Chosen | None = None, context: Context = NO_CONTEXT) -> Tensor:
        if chosen is not None and chosen.Q == 0 and nothing_wanted(context):
            self.remember(x_BTD, context)
            return x_BTD.new_empty(0, x_BTD.shape[2])
        if context.attentions is not None and self.keys == "routed":
            raise ValueError("output_attentions: with attention_keys='routed' most keys have no weights")
        among = chosen if self.keys == "routed" else None  # the only tokens that serve as keys; None: all do
        usable_BK = self._mark_usable(x_BTD, among, context)
        asking = x_BTD if chosen is None else chosen.take(x_BTD)
        k, v = self._keys_and_values(x_BTD if among is None else asking, among, context)
        past = k.shape[2] - (x_BTD.shape[1] if among is None else among.Q)
        q = lay_out_heads(self._split(self.query(asking)), context.rotary, chosen)
        mask = None if self.keys == "routed" else context.attention_mask  # which is one over all tokens
        if x_BTD.shape[1] == 1 and usable_BK is None and mask is None:
            # One token per row sees whatever there is.
            out = scaled_dot_product_attention(q, k, v, dropout_p=self._dropout)
        elif chosen is None and self._interface_knows_mask(context, past, x_BTD.shape[1], usable_BK):
            out = self._interface(q, k, v, context.attention_mask)
        elif among is not None and past == 0 and self.causal:
            out = packed_attention(q, k, v, among.counts, self._dropout)
        else:
            visible_BQ = self._visible(x_BTD, chosen, among, past, k.shape[2])
            out = chosen_attention(q, k, v, visible_BQ, usable_BK, self._dropout)
        if context.attentions is not None:
            visible_BQ = self._visible(x_BTD, chosen, among, past, k.shape[2])
            if context.routed_BT is not None:
                visible_BQ = visible_BQ * context.routed_BT
            context.attentions.append(attention_weights(q, k, visible_BQ, usable_BK, chosen))
        out = out.transpose(1, 2).flatten(2)
        return self.out(out if chosen is None else chosen.unpad(out))

    def remember(self, x_BTD: Tensor, context: Context) -> None:
        if not nothing_wanted(context):
            super().remember(x_BTD, context)
        elif context.state is not None and self.keys == "all":
            self._mark_usable(x_BTD, None, context)
            wait(context.state, x_BTD, context.rotary)

    def _mark_usable(self, x_BTD: Tensor, among: Chosen | None, context: Context) -> Tensor | None:
        """Which keys may be seen at all, (B, K), those of earlier calls included; None: all."""
        usable_BT, new = context.valid_BT, x_BTD.shape[1]
        if among is not None:
            usable_BT, new = among.filled_BQ if len(x_BTD) > 1 else None, among.Q  # a single row has no padding
        elif self.keys == "routed" and context.routed_BT is not None:
            usable_BT = context.routed_BT
        return mark_usable(context.state, len(x_BTD), new, usable_BT)

    def _keys_and_values(self, tokens: Tensor, among: Chosen | None, context: Context) -> tuple[Tensor, Tensor]:
        """Of `tokens`, behind those of earlier calls, (B, N, K, H)."""
        rotary = context.rotary
        if among is None:
            tokens, rotary = recall(context.state, tokens, rotary)
        k, v = self.key_value(tokens).chunk(2, dim=-1)
        heads = lay_out_heads(self._split(k), rotary, among), lay_out_heads(self._split(v), None, among)
        return append(context.state, *heads)

    def _split(self, channels: Tensor) -> Tensor:
        return channels.unflatten(-1, (self.num_heads, self.head_dim))

    def _visible(self, x_BTD: Tensor, chosen: Chosen | None, among: Chosen | None, past: int, K: int) -> Tensor:
        """How many leading keys each query may see, (B, Q)."""
        B, T = x_BTD.shape[:2]
        if chosen is None:
            visible_BQ = past + 1 + torch.arange(T, device=x_BTD.device).expand(B, T)
        elif among is not None:
            visible_BQ = (past + 1 + torch.arange(among.Q, device=x_BTD.device)) * among.filled_BQ
        else:
            visible_BQ = chosen.pad(past + 1 + chosen.place_M)
        return visible_BQ if self.causal else torch.where(visible_BQ > 0, K, 0)

    def _interface_knows_mask(self, context: Context, past: int, T: int, usable_BK: Tensor | None) -> bool:
        """Whether `context.attention_mask`, or its absence, says all there is to say about who sees whom."""
        if self.keys == "routed" and context.routed_BT is not None:
            return False
        if context.attention_mask is not None:
            return True
        # Without a mask transformers' eager attention masks nothing, while the others take `is_causal` at its word.
        causal_by_itself = T == 1 or (past == 0 and self._implementation != "eager")
        return usable_BK is None and causal_by_itself

    def _interface(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self._implementation, eager_attention_forward)
        if isinstance(mask, Tensor) and mask.dtype == torch.float64:  # the eager one takes the softmax in float32
            mask = mask.clamp_min(torch.finfo(torch.float32).min)
        out_BTNH, _ = attend(
            self, q, k, v, mask, dropout=self._dropout, scaling=self.head_dim**-0.5, is_causal=self.causal
        )
        return out_BTNH.transpose(1, 2)

    @property
    def _implementation(self) -> str:
        return getattr(self.config, "_attn_implementation", None) or "sdpa"

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def flops(self, work: Work) -> Flops:
        D = self.hidden_size
        keys = work.keys if work.chosen else 0.0
        projections = 2 * linear_flops(work.chosen, D, D) + linear_flops(keys, D, 2 * D)
        return Flops(attention=2 * linear_flops(work.pairs, D, 1), mixing=projections)


def lay_out_heads(rows: Tensor, rotary: tuple[Tensor, Tensor] | None, chosen: Chosen | None) -> Tensor:
    """(B, T, N, H), or (M, N, H) of chosen tokens, turned by their positions and laid out as (B, N, T or Q, H)."""
    heads = (rows if chosen is None else chosen.pad(rows)).transpose(1, 2)
    if rotary is None:
        return heads
    cos, sin = rotary if chosen is None else (chosen.pad(chosen.take(table)) for table in rotary)
    return rotate(heads, cos.unsqueeze(1), sin.unsqueeze(1))


def nothing_wanted(context: Context) -> bool:
    """Whether nothing comes of attention that no token asks for: in training its weights have a gradient, of zero."""
    return not torch.is_grad_enabled() and context.attentions is None


def attention_weights(
    q: Tensor,
    k: Tensor,
    visible_BQ: Tensor,
    usable_BK: Tensor | None,
    chosen: Chosen | None = None,
    window: int | None = None,
) -> Tensor:
    """What the queries (B, N, Q, H) make of the usable ones of the first `visible_BQ` keys (B, N, K, H), or of the last
    `window` of these: (B, N, T, K), rows of tokens not chosen zero."""
    seen_BQK = torch.arange(k.shape[2], device=k.device) < visible_BQ[..., None]
    if usable_BK is not None:
        seen_BQK = seen_BQK & usable_BK[:, None]
    if window is not None:
        behind_BQK = seen_BQK.sum(-1, keepdim=True) - seen_BQK.cumsum(-1)  # how many are seen behind each
        seen_BQK = seen_BQK & (behind_BQK < window)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen_BQK[:, None], -torch.inf)
    weights_BNQK = scores.softmax(-1).nan_to_num(0.0)
    if chosen is None:
        return weights_BNQK
    return chosen.scatter(chosen.unpad(weights_BNQK.transpose(1, 2))).transpose(1, 2)
