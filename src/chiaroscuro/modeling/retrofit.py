"""Routed attention put into a decoder of transformers that was trained without it.

The attention modules stay where they are, with the names of their weights; they get a router and a light operator
beside them, and a forward pass that attends for a share of the tokens. At a share of one it is the old one.

Shapes: B batch, T tokens, K keys, Q chosen tokens of the fullest row, D model channels, N heads, G query heads that
share one of N heads of keys, H head channels.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from chiaroscuro.mixers import NO_CONTEXT, Context, DCTMixer, Flops, Mixer, NothingMixer, Work
from chiaroscuro.mixers.flops import linear_flops
from chiaroscuro.modeling.loading import causal_class, load_config, load_model
from chiaroscuro.ops import Chosen, chosen_attention, rotate
from chiaroscuro.ops.evaluating import evaluating
from chiaroscuro.routing import RoutedMixer, ThresholdRouter, calibrate, check_share

SETTINGS = "chiaroscuro"  # where the configuration says what was done to the model
Light = Literal["none", "dct"]


def retrofit(
    model: PreTrainedModel, layers: Sequence[int] | None = None, light: Light = "none", check: bool = True
) -> PreTrainedModel:
    """Let `model` route the tokens of `layers` between its attention and a light operator, by their spectral entropy.

    model: a causal language model whose attention is built as Llama's (also Mistral, Qwen, ...) or GPT-2's, with full
        causal attention. It is changed in place and returned. Weights and their names stay, and so do outputs, exactly,
        until `set_share` lowers the share of the tokens that are attended for.
    layers: indices of layers; default: all but the first and the last.
    light: what the other tokens get: "none", the residual only; "dct", a spectral filter that starts at zero.
    check: compare routed attention of all tokens with the model's own on some tokens; says something of a model that
        is trained, since with fresh weights attention hardly tells.

    Raises ValueError for other kinds of attention, for layers that do not exist, and for a model that was retrofitted
    before.
    """
    attentions: list[Any] = [module for module in model.modules() if _style(module)]
    found = {attention.layer_idx: attention for attention in attentions}
    if not found:
        raise ValueError(f"{type(model).__name__} has no attention built as Llama's or GPT-2's")
    if any(isinstance(module, RoutedAttention) for module in found.values()):
        raise ValueError(f"this {type(model).__name__} was retrofitted before")
    chosen = sorted(found)[1:-1] if layers is None else list(layers)
    if not chosen or not set(chosen) <= set(found):
        raise ValueError(f"layers must be some of {sorted(found)}, got {chosen}")
    try:
        for index in chosen:
            _route(found[index], light)
        if check:
            _check_same(model)
    except Exception:
        for index in chosen:
            _leave(found[index])
        raise
    setattr(model.config, SETTINGS, {"layers": chosen, "light": light, "share": 1.0})
    return model


def set_share(model: PreTrainedModel, share: float, input_ids_BT: Tensor) -> None:
    """Attend for a share of the tokens in each routed layer of a retrofitted model, those with the highest entropy, as
    found on `input_ids_BT`, some thousand tokens of held-out text. Raises ValueError for a share outside [0, 1] and for
    a model that was not retrofitted."""
    check_share(share)
    routers = [module for module in model.modules() if isinstance(module, ThresholdRouter)]
    if not routers or not hasattr(model.config, SETTINGS):
        raise ValueError(f"this {type(model).__name__} was not retrofitted")
    for router in routers:
        router.share = share
    setattr(model.config, SETTINGS, getattr(model.config, SETTINGS) | {"share": share})
    calibrate(model, input_ids_BT)


def load_retrofitted(folder: Path | str, **kwargs: Any) -> PreTrainedModel:
    """A retrofitted model from the folder that its `save_pretrained` made; `kwargs` as for `from_pretrained`. (Other
    ways to load it give the model without routing, and a warning of weights that are not used.) Raises ValueError when
    the model in `folder` was not retrofitted."""
    config = load_config(Path(folder))
    settings: Any = getattr(config, SETTINGS, None)
    if not isinstance(settings, dict) or set(settings) != {"layers", "light", "share"}:
        raise ValueError(f"the model in {folder} was not retrofitted")
    check_share(settings["share"])
    cls: Any = causal_class(config)

    class Retrofitted(cls):
        _keep_in_fp32_modules_strict = {*(cls._keep_in_fp32_modules_strict or ()), "thresholds"}

        def __init__(self, config: Any, *args: Any, **kwargs: Any):
            super().__init__(config, *args, **kwargs)
            retrofit(self, settings["layers"], settings["light"], check=False)
            for router in self.modules():
                if isinstance(router, ThresholdRouter):
                    router.share = settings["share"]
            setattr(self.config, SETTINGS, settings)

    model = load_model(Retrofitted, Path(folder), config, **kwargs)
    model.__class__ = cls
    return model


class RoutedAttention(nn.Module):
    """What a retrofitted attention module is beside its own class. `routed` holds the operators and the router."""

    routed: RoutedMixer

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        router = cast(ThresholdRouter, self.routed.router)
        if router.share == 1.0:
            return super().forward(hidden_states, *args, **kwargs)
        if args:
            raise TypeError("retrofitted attention takes all but the hidden states by name")
        if kwargs.get("output_attentions"):
            raise ValueError("output_attentions: a retrofitted layer has no weights for the tokens that do not attend")
        context = Context(
            rotary=kwargs.get("position_embeddings"),
            attention_mask=kwargs.get("attention_mask"),
            cache=kwargs.get("cache", kwargs.get("past_key_values")),  # renamed in transformers 5.24
        )
        return self.routed(hidden_states, context)[0], None


class OwnAttention(Mixer):
    """The attention of a module of transformers, by its own projections and its own cache, of chosen tokens.

    A subclass knows one way in which such modules are built. width, heads, key_heads: channels of the model, heads of
    queries, and of keys and values.
    """

    width: int
    heads: int
    key_heads: int

    def __init__(self, attention: nn.Module):
        super().__init__()
        self._attention = (attention,)  # it holds this mixer; in a tuple it is not taken for a part of it

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
        past = _seen(context.cache, self.attention.layer_idx)
        k, v = self.key_value(x_BTD)
        k, v = _heads(k, context.rotary, None), _heads(v, None, None)
        if context.cache is not None:
            k, v = context.cache.update(k, v, self.attention.layer_idx)
        rows = x_BTD if chosen is None else chosen.take(x_BTD)
        q = _heads(self.query(rows), context.rotary, chosen)
        if chosen is None:
            visible_BQ = past + 1 + torch.arange(T, device=x_BTD.device).expand(B, T)
        else:
            visible_BQ = chosen.pad(past + 1 + chosen.place_M)
        usable_BK = _usable(context.attention_mask, past, T, k.shape[2])
        found = self._attend(q, k, v, visible_BQ, usable_BK).transpose(1, 2).flatten(2)
        return self.out(found if chosen is None else chosen.unpad(found))

    def _attend(self, q_BNQH: Tensor, k: Tensor, v: Tensor, visible_BQ: Tensor, usable_BK: Tensor | None) -> Tensor:
        """Query heads that share keys come as further queries, one behind the other, so that no key is copied."""
        G, Q = self.heads // self.key_heads, q_BNQH.shape[2]
        q = q_BNQH * (self.attention.scaling * self.attention.head_dim**0.5)
        q = q.unflatten(1, (-1, G)).transpose(2, 3).flatten(2, 3)
        dropout = self.dropout if self.attention.training else 0.0
        found = chosen_attention(q, k, v, visible_BQ.repeat_interleave(G, dim=1), usable_BK, dropout)
        return found.unflatten(2, (Q, G)).transpose(2, 3).flatten(1, 2)

    def _split(self, channels: Tensor) -> Tensor:
        return channels.unflatten(-1, (-1, self.attention.head_dim))

    def flops(self, work: Work) -> Flops:
        D, H = self.width, self.attention.head_dim
        projections = linear_flops(work.chosen, D, self.heads * H) + linear_flops(work.keys, D, self.key_heads * H)
        return Flops(attention=2 * linear_flops(work.pairs, self.heads * H, 1), mixing=2 * projections)

    def state_size(self, length: int) -> int:
        return 2 * length * self.key_heads * self.attention.head_dim


class LlamaStyle(OwnAttention):
    """Four projections, rotary positions given by the model, groups of heads that share keys, and norms of queries and
    keys in some families."""

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
        return self.attention.o_proj(rows)

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
        if type(layer) is not Conv1D:  # something was put around it, an adapter
            return layer(rows)[..., columns]
        return linear(rows, layer.weight[:, columns].T, layer.bias[columns])


STYLES: tuple[type[OwnAttention], ...] = (LlamaStyle, GPT2Style)


def _style(module: nn.Module) -> type[OwnAttention] | None:
    return next((style for style in STYLES if style.fits(module)), None)


def _heads(rows: Tensor, rotary: tuple[Tensor, Tensor] | None, chosen: Chosen | None) -> Tensor:
    """(B, T, N, H), or (M, N, H) of chosen tokens, turned by their positions and laid out as (B, N, T or Q, H)."""
    heads = (rows if chosen is None else chosen.pad(rows)).transpose(1, 2)
    if rotary is None:
        return heads
    cos, sin = rotary if chosen is None else (chosen.pad(chosen.take(table)) for table in rotary)
    return rotate(heads, cos.unsqueeze(1), sin.unsqueeze(1))


def _seen(cache: Any, layer: int) -> Any:
    """Tokens in a cache of transformers: a number, or in a static cache a tensor that counts on as they are added."""
    seen = 0 if cache is None else cache.get_seq_length(layer)
    return seen.clone() if isinstance(seen, Tensor) else seen


def _usable(mask: Tensor | None, past: Any, T: int, K: int) -> Tensor | None:
    """Which keys are not padding, (B, K), read off a mask of transformers, boolean or additive. Raises ValueError for
    one that is not causal with padding."""
    if mask is None:
        return None
    if mask.ndim != 4:
        raise ValueError(
            f"retrofitted attention takes masks for eager or sdpa attention, got shape {tuple(mask.shape)}"
        )
    seen_BTK = (mask if mask.dtype == torch.bool else mask == 0)[:, 0, :, :K]
    causal_TK = torch.arange(K, device=mask.device) < (past + 1 + torch.arange(T, device=mask.device))[:, None]
    usable_BK = seen_BTK[:, -1]
    if mask.device.type == "cpu":  # on an accelerator looking here would stall the stream
        blind_BT = ~usable_BK[:, int(past) : int(past) + T]  # padding, which some masks show everything
        wrong_BT = (seen_BTK != (causal_TK & usable_BK[:, None])).any(-1) & ~(blind_BT & seen_BTK.all(-1))
        if wrong_BT.any():
            raise ValueError("retrofitted attention takes a causal mask with padding, no windows and no packed texts")
    return usable_BK


def _route(attention: Any, light: Light) -> None:
    """Make an attention module a `RoutedAttention`, which keeps its own class as a base."""
    config = attention.config
    window = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
    if window is not None and window < config.max_position_embeddings:
        raise ValueError(f"layer {attention.layer_idx} attends within a window of {window} tokens, which is not routed")
    style = _style(attention)
    assert style is not None
    own = style(attention)
    operators: dict[str, Mixer] = {"none": NothingMixer(), "dct": DCTMixer(own.width, start=0.0)}
    if light not in operators:
        raise ValueError(f"unknown light operator {light!r}; known: {', '.join(operators)}")
    routed = RoutedMixer(
        {light: operators[light], "attention": own}, ThresholdRouter(own.width, 2, attention.layer_idx, share=1.0)
    )
    weight = next(attention.parameters())
    attention.__class__ = type(f"Routed{type(attention).__name__}", (RoutedAttention, type(attention)), {})
    attention.routed = nn.Module.to(routed, weight.device, weight.dtype)


def _leave(attention: Any) -> None:
    """Undo `_route`, if it was done."""
    if isinstance(attention, RoutedAttention):
        attention.__class__ = type(attention).__mro__[2]
        del attention.routed


def _check_same(model: PreTrainedModel) -> None:
    """Raises ValueError when routed attention, asked for every token, is not what the model computes by itself."""
    routers = [module for module in model.modules() if isinstance(module, ThresholdRouter)]
    ids_BT = torch.arange(2 * 24, device=model.device).view(2, 24) % model.config.vocab_size
    with evaluating(model):
        own = model(ids_BT, use_cache=False).logits
        for router in routers:
            router.share, thresholds = 0.5, router.thresholds.tolist()
            router.set_thresholds(-1.0, -1.0)  # below every entropy
        try:
            routed = model(ids_BT, use_cache=False).logits
        except RuntimeError as error:
            raise ValueError(f"{type(model).__name__} computes its attention in another way: {error}") from error
        for router in routers:
            router.share = 1.0
            router.set_thresholds(*thresholds)
    apart = float((routed - own).abs().max() / own.std())
    if not apart < 0.05:
        raise ValueError(
            f"{type(model).__name__} computes its attention in another way than Llama's or GPT-2's: its logits are "
            f"{apart:.1g} deviations from those of routed attention of all tokens"
        )
