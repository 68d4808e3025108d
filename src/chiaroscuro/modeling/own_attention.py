"""The attention of a module of transformers as an operator, of chosen tokens, by its own projections and cache.

Shapes: B batch, T tokens, K keys, Q chosen tokens of the fullest row, M chosen tokens of all rows, D model channels, N
heads, G query heads that share one of N heads of keys, H head channels.
"""

from abc import abstractmethod
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear
from transformers.pytorch_utils import Conv1D

from chiaroscuro.mixers import NO_CONTEXT, Context, Flops, Mixer, Work
from chiaroscuro.mixers.attention import lay_out_heads
from chiaroscuro.mixers.flops import linear_flops
from chiaroscuro.ops import Chosen, chosen_attention


class OwnAttention(Mixer):
    """A subclass knows one way in which such modules are built. width, heads, key_heads: channels of the model, heads
    of queries, and of keys and values."""

    remembers = True
    width: int
    heads: int
    key_heads: int

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.belongs_to(attention)

    def belongs_to(self, attention: nn.Module) -> None:
        """Which module it is the attention of: the one that holds it, and of which a copy holds a copy."""
        self._attention = (attention,)  # in a tuple it is not taken for a part of this one

    @classmethod
    @abstractmethod
    def fits(cls, module: nn.Module) -> bool:
        """Whether a module is built this way."""

    @classmethod
    def from_config(cls, config: Any) -> Self:
        raise TypeError("OwnAttention belongs to a module and is not chosen by name")

    @property
    def attention(self) -> Any:
        return self._attention[0]

    @property
    @abstractmethod
    def dropout(self) -> float:
        """Of attention weights, in training."""

    @abstractmethod
    def query(self, rows: Tensor) -> Tensor:
        """(..., N, H)."""

    @abstractmethod
    def key_value(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, N / G, H) each."""

    @abstractmethod
    def out(self, rows: Tensor) -> Tensor:
        """From all heads (..., N * H) to (..., D)."""

    def forward(self, x_BTD: Tensor, chosen: Chosen | None = None, context: Context = NO_CONTEXT) -> Tensor:
        B, T = x_BTD.shape[:2]
        past = tokens_seen(context.cache, self.attention.layer_idx)
        k, v = self.key_value(x_BTD)
        k, v = lay_out_heads(k, context.rotary, None), lay_out_heads(v, None, None)
        if context.cache is not None:
            k, v = context.cache.update(k, v, self.attention.layer_idx)
        rows = x_BTD if chosen is None else chosen.take(x_BTD)
        q = lay_out_heads(self.query(rows), context.rotary, chosen)
        if chosen is None:
            visible_BQ = past + 1 + torch.arange(T, device=x_BTD.device).expand(B, T)
        else:
            visible_BQ = chosen.pad(past + 1 + chosen.place_M)
        usable_BK = _usable_keys(context.attention_mask, past, T, k.shape[2])
        found = self._attend(q, k, v, visible_BQ, usable_BK).transpose(1, 2).flatten(2)
        return self.out(found if chosen is None else chosen.unpad(found))

    def _attend(self, q_BNQH: Tensor, k: Tensor, v: Tensor, visible_BQ: Tensor, usable_BK: Tensor | None) -> Tensor:
        """Query heads that share keys come as further queries, one behind the other, so that no key is copied."""
        G, Q = self.heads // self.key_heads, q_BNQH.shape[2]
        q_BNQH, k = q_BNQH.to(v.dtype), k.to(v.dtype)  # under autocast norms of queries and keys give float32
        q = q_BNQH * (self.attention.scaling * self.attention.head_dim**0.5)
        q = q.unflatten(1, (-1, G)).transpose(2, 3).flatten(2, 3)
        probability = self.dropout if self.attention.training else 0.0
        found = chosen_attention(q, k, v, visible_BQ.repeat_interleave(G, dim=1), usable_BK, probability)
        return found.unflatten(2, (Q, G)).transpose(2, 3).flatten(1, 2)

    def _split(self, channels: Tensor) -> Tensor:
        return channels.unflatten(-1, (-1, self.attention.head_dim))

    def flops(self, work: Work) -> Flops:
        D, H = self.width, self.attention.head_dim
        projections = linear_flops(work.chosen, D, self.heads * H) + linear_flops(work.keys, D, self.key_heads * H)
        return Flops(attention=2 * linear_flops(work.pairs, self.heads * H, 1), mixing=2 * projections)


class LlamaStyle(OwnAttention):
    """Four projections, rotary positions given by the model, groups of heads that share keys; in some families norms of
    queries and keys, and dropout behind the last projection."""

    def __init__(self, attention: Any):
        super().__init__(attention)
        self.width = attention.q_proj.in_features
        self.heads = attention.q_proj.out_features // attention.head_dim
        self.key_heads = attention.k_proj.out_features // attention.head_dim

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        return all(hasattr(module, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj", "layer_idx", "scaling"))

    @property
    def dropout(self) -> float:
        return self.attention.attention_dropout

    def query(self, rows: Tensor) -> Tensor:
        return self._normed("q_norm", self._split(self.attention.q_proj(rows)))

    def key_value(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self._split(self.attention.k_proj(x_BTD)), self._split(self.attention.v_proj(x_BTD))
        return self._normed("k_norm", k), v

    def out(self, rows: Tensor) -> Tensor:
        probability = getattr(self.attention, "residual_dropout", 0.0)
        return dropout(self.attention.o_proj(rows), probability, self.attention.training)

    def _normed(self, name: str, heads: Tensor) -> Tensor:
        return getattr(self.attention, name)(heads) if hasattr(self.attention, name) else heads


class GPT2Style(OwnAttention):
    """One projection for queries, keys and values, positions in the embeddings, dropout behind the last projection."""

    def __init__(self, attention: Any):
        super().__init__(attention)
        self.width = attention.embed_dim
        self.heads = self.key_heads = attention.num_heads

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        built = all(hasattr(module, name) for name in ("c_attn", "c_proj", "layer_idx", "scaling"))
        return built and not getattr(module, "is_cross_attention", False)

    @property
    def dropout(self) -> float:
        return self.attention.attn_dropout.p

    def query(self, rows: Tensor) -> Tensor:
        return self._split(self._project(rows, slice(self.width)))

    def key_value(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self._project(x_BTD, slice(self.width, None)).chunk(2, dim=-1)
        return self._split(k), self._split(v)

    def out(self, rows: Tensor) -> Tensor:
        return self.attention.resid_dropout(self.attention.c_proj(rows))

    def _project(self, rows: Tensor, columns: slice) -> Tensor:
        layer = self.attention.c_attn
        # Something was put around it, such as an adapter, or its weight is kept elsewhere until it is called.
        if type(layer) is not Conv1D or layer.weight.is_meta:
            return layer(rows)[..., columns]
        return linear(rows, layer.weight[:, columns].T, layer.bias[columns])


def tokens_seen(cache: Any, layer: int) -> Any:
    """Tokens in a cache of transformers: a number, or in a static cache a tensor that counts on as they are added."""
    seen = 0 if cache is None else cache.get_seq_length(layer)
    return seen.clone() if isinstance(seen, Tensor) else seen


def valid_tokens(mask: Any, past: Any, T: int) -> Tensor | None:
    """Which of the tokens after the first `past` are not padding, (B, T), read off a mask of transformers: the last
    query sees all others."""
    if mask is None:
        return None
    return _seen(mask, slice(-1, None))[:, 0].index_select(1, past + torch.arange(T, device=mask.device))


def _seen(mask: Any, queries: slice) -> Tensor:
    """Which keys each of the queries sees, (B, T, K), by a mask of transformers, boolean or additive."""
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        got = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"retrofitted attention takes masks for eager or sdpa attention, got {got}")
    asked_BTK = mask[:, 0, queries]
    return asked_BTK if mask.dtype == torch.bool else asked_BTK == 0


def _usable_keys(mask: Any, past: Any, T: int, K: int) -> Tensor | None:
    """Which keys are not padding, (B, K). Raises ValueError for a mask that is not causal with padding."""
    if mask is None:
        return None
    seen_BTK = _seen(mask, slice(None))[..., :K]
    causal_TK = torch.arange(K, device=mask.device) < (past + 1 + torch.arange(T, device=mask.device))[:, None]
    usable_BK = seen_BTK[:, -1]
    if mask.device.type == "cpu":  # on an accelerator looking here would stall the stream
        blind_BT = ~usable_BK[:, int(past) : int(past) + T]  # padding, which some masks show everything
        wrong_BT = (seen_BTK != (causal_TK & usable_BK[:, None])).any(-1) & ~(blind_BT & seen_BTK.all(-1))
        if wrong_BT.any():
            raise ValueError("retrofitted attention takes a causal mask with padding, no windows and no packed texts")
    return usable_BK
