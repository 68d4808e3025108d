"""The body of the model: embedding, layers and final norm.

Shapes: B batch, T tokens, D model channels, H head channels.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from chiaroscuro.mixers import Context, Flops, Mixer, ShortConvolution
from chiaroscuro.mixers.flops import linear_flops
from chiaroscuro.modeling.cache import RoutedCacheLayer
from chiaroscuro.modeling.card import CARD, model_card
from chiaroscuro.modeling.configuration import ChiarConfig
from chiaroscuro.modeling.layer import ChiarLayer, RoutingTrace
from chiaroscuro.modeling.packed import refuse_named, refuse_restarts
from chiaroscuro.ops import rotary_tables
from chiaroscuro.routing import MetaRouter, Router, recency


@dataclass
class ChiarModelOutput(BaseModelOutputWithPast):
    """routing: a `RoutingTrace` per layer with a choice, when asked for with `output_routing`. meta_gate: the
    MetaRouter's gates, (B, T, 1) or (1, 1, 1), when there is one."""

    routing: tuple[RoutingTrace, ...] | None = None
    meta_gate: Tensor | None = None


class ChiarPreTrainedModel(PreTrainedModel):
    """Initialisation, and what transformers needs to know about the architecture."""

    config_class = ChiarConfig
    config: ChiarConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _keep_in_fp32_modules_strict = {"thresholds"}
    _no_split_modules = ["ChiarLayer"]
    _skip_keys_device_placement = ["past_key_values", "states"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _is_stateful = True  # a running sum cannot be rolled back, so assisted decoding is refused
    _can_record_outputs = {"hidden_states": ChiarLayer}

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing: what a folder needs to be loaded with `trust_remote_code` is saved with the configuration."""

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """With a model card, where there is none yet."""
        try:
            super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        except SafetensorError as error:  # as which a full disk comes
            raise OSError(f"cannot write the weights to {save_directory}: {error}") from error
        card = Path(save_directory) / CARD
        if is_main_process and card.parent.is_dir() and not card.exists():
            model_card(self).save(card)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, (Mixer, Router, MetaRouter, ShortConvolution)):
            module.reset_parameters()


class ChiarModel(ChiarPreTrainedModel):
    """Embedding, layers and final norm, without a head."""

    def __init__(self, config: ChiarConfig):
        config.validate()  # fields may have been set since it was made
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = None
        if config.position_embedding == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.embedding_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.dropout)
        self.meta_router = None
        if config.meta_router != "none":
            self.meta_router = MetaRouter(config.hidden_size, config.meta_router)  # type: ignore[arg-type]
        self.layers = nn.ModuleList(ChiarLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_routing: bool = False,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> ChiarModelOutput:
        """input_ids (B, T) or inputs_embeds (B, T, D), which router "recurrence" takes for tokens that recur, all of
        them; attention_mask (B, past + T), zero at padding.

        output_attentions: the weights of each operator that attends, layer by layer, (B, N, T, K), zero for tokens
            routed elsewhere.

        Raises ValueError for token ids outside the vocabulary, a sequence longer than `max_position_embeddings`, a
        mask of the wrong shape, texts packed into one row, a cache that was not made for this model, holds another
        batch or cannot be gone on from (training with gradient checkpointing), and weights of attention asked of routed
        keys.
        """
        past_key_values = kwargs.pop("cache", past_key_values)  # its name in transformers from 5.24 on
        refuse_named(kwargs)
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        inputs_embeds = self._embed(input_ids, inputs_embeds)
        B, T = inputs_embeds.shape[:2]
        past_key_values = self._cache(past_key_values, use_cache)
        cached = _cache_layers(past_key_values, len(self.layers))
        past = _seen(cached, B, attention_mask)
        self._check_length(past + T)
        attention_mask = _padding_mask(attention_mask, B, past + T)
        positions_BT = _positions(position_ids, attention_mask, past, B, T, inputs_embeds.device)
        self._check_positions(position_ids)

        hidden_BTD = self._place(inputs_embeds, positions_BT)
        valid_BT = None if attention_mask is None else attention_mask[:, past:]
        context = Context(
            positions_BT=positions_BT,
            ids_BT=input_ids,
            recency_BT=self._recency(input_ids, valid_BT, hidden_BTD, cached),
            valid_BT=valid_BT,
            rotary=self._rotary(positions_BT, hidden_BTD.dtype),
            attention_mask=self._attention_mask(inputs_embeds, attention_mask, past_key_values),
            attentions=[] if output_attentions else None,
            traced=output_routing,
        )

        meta_gate = self._meta_gate(hidden_BTD, valid_BT, cached)
        traces: list[RoutingTrace] = []
        for layer in self.layers:
            gate = meta_gate if layer.index == 0 else None
            hidden_BTD, trace = layer(hidden_BTD, context, gate, past_key_values=past_key_values)
            if trace is not None:
                traces.append(trace)
        for layer_cache in cached:
            layer_cache.seen += T
            layer_cache.padded |= attention_mask is not None
        return ChiarModelOutput(
            last_hidden_state=self.norm(hidden_BTD),
            past_key_values=past_key_values,
            attentions=None if context.attentions is None else tuple(context.attentions),
            routing=tuple(traces) if output_routing else None,
            meta_gate=meta_gate,
        )

    def flops(
        self, batch_size: int, seq_len: int, routing: tuple[RoutingTrace, ...] | None = None, past: int = 0
    ) -> Flops:
        """Forward FLOPs of the body, by part (`chiaroscuro.mixers.Flops`), for sequences without padding.

        With the `routing` of a forward pass, those of that pass; without, the FLOPs expected when each operator of a
        layer takes the share of the tokens that the router is to give it. With `past` tokens in a cache, those of
        `seq_len` further ones that come one at a time, as in generation; `routing` is then that of all of them.
        """
        traces = {trace.layer: trace for trace in routing or ()}
        total = Flops()
        for layer in cast(list[ChiarLayer], self.layers):
            total = total + layer.flops(batch_size, seq_len, traces.get(layer.index), past)
        if self.meta_router is not None:
            total = total + Flops(routing=linear_flops(batch_size * seq_len, self.config.hidden_size, 1))
        return total

    def _cache(self, given: Cache | None, wanted: bool | None) -> Cache | None:
        """The cache to go on from and to fill, if any."""
        if self.training and self.gradient_checkpointing:  # layers are then run without one
            if given is not None and given.get_seq_length():
                raise ValueError("nothing goes on from a cache in training with gradient checkpointing: model.eval()")
            return None
        return DynamicCache(config=self.config) if wanted and given is None else given

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is not None:
            D = self.config.hidden_size
            if inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != D or not inputs_embeds.numel():
                raise ValueError(
                    f"inputs_embeds must have shape (batch, tokens, {D}) with at least one of each, got "
                    f"{tuple(inputs_embeds.shape)}"
                )
            return inputs_embeds
        assert input_ids is not None
        if input_ids.ndim != 2 or not input_ids.numel():
            raise ValueError(
                f"input_ids must have shape (batch, tokens) with at least one of each, got {tuple(input_ids.shape)}"
            )
        size = self.embed_tokens.num_embeddings
        # On an accelerator the embedding's own assertion answers; looking here would stall the stream.
        if input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(input_ids.min()), int(input_ids.max())
            if low < 0 or high >= size:
                raise ValueError(
                    f"token id {low if low < 0 else high} is outside the vocabulary of {size}: was the text encoded "
                    "with another tokenizer?"
                )
        return self.embed_tokens(input_ids)

    def _check_length(self, length: int) -> None:
        limit = self.config.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"the sequence has {length} tokens and the model takes at most {limit}: cut it, or "
                + ("train a model with" if self.embed_positions is not None else "raise")
                + " a larger max_position_embeddings"
            )

    def _check_positions(self, given_BT: Tensor | None) -> None:
        """Raises ValueError for positions without a learned vector; on an accelerator the table itself does."""
        if given_BT is None or self.embed_positions is None or given_BT.device.type != "cpu":
            return
        size = self.embed_positions.num_embeddings
        if not torch.compiler.is_compiling() and not 0 <= int(given_BT.min()) <= int(given_BT.max()) < size:
            raise ValueError(f"position_ids must lie in [0, {size}), where the model has learned positions")

    def _place(self, inputs_embeds: Tensor, positions_BT: Tensor) -> Tensor:
        """Embedded tokens as the first layer takes them."""
        hidden_BTD = inputs_embeds
        if self.embed_positions is not None:
            hidden_BTD = hidden_BTD + self.embed_positions(positions_BT)
        if self.embedding_norm is not None:
            hidden_BTD = self.embedding_norm(hidden_BTD)
        return cast(Tensor, self.dropout(hidden_BTD))

    def _meta_gate(self, hidden_BTD: Tensor, valid_BT: Tensor | None, cached: list[RoutedCacheLayer]) -> Tensor | None:
        """How much of the first layer to use, where there is a MetaRouter to say it."""
        if self.meta_router is None:
            return None
        state = cached[0].states["meta_router"] if cached else None
        return cast(Tensor, self.meta_router(hidden_BTD, valid_BT, state))

    def _recency(
        self, ids_BT: Tensor | None, valid_BT: Tensor | None, hidden_BTD: Tensor, cached: list[RoutedCacheLayer]
    ) -> Tensor | None:
        """When the tokens last occurred, if a router goes by it."""
        routers = (layer.mixer.router for layer in cast(list[ChiarLayer], self.layers))
        if not any(router is not None and router.reads_recency for router in routers):
            return None
        if ids_BT is None:
            ids_BT = hidden_BTD.new_zeros(hidden_BTD.shape[:2], dtype=torch.long)
            valid_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        return recency(ids_BT, valid_BT, cached[0].states["recency"] if cached else None)

    def _attention_mask(
        self, inputs_embeds: Tensor, attention_mask: Tensor | None, cache: Cache | None
    ) -> Tensor | None:
        """Of queries against keys, in layers where all tokens attend: chosen tokens do without its (T, T) entries."""
        if not any(layer.mixer.reads_mask for layer in cast(list[ChiarLayer], self.layers)):
            return None
        return cast(Tensor | None, create_causal_mask(self.config, inputs_embeds, attention_mask, cache))

    def _rotary(self, positions_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        if self.config.position_embedding != "rotary":
            return None
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        cos, sin = rotary_tables(positions_BT, head_dim, self.config.rope_base)
        return cos.to(dtype), sin.to(dtype)


def _cache_layers(cache: Cache | None, count: int) -> list[RoutedCacheLayer]:
    given = getattr(cache, "layers", ())
    layers = [layer for layer in given if isinstance(layer, RoutedCacheLayer)]
    if cache is not None and not len(layers) == len(given) == count:
        raise ValueError("the cache was not made for this model: use DynamicCache(config=model.config)")
    return layers


def _seen(cached: list[RoutedCacheLayer], B: int, attention_mask: Any) -> int:
    """Tokens in the cache."""
    known = next((layer.rows for layer in cached if layer.rows is not None), B)
    if known != B:
        raise ValueError(f"the cache holds {known} rows and {B} are given to go on with")
    if attention_mask is None and any(layer.padded for layer in cached):
        raise ValueError("there is padding in the cache: give attention_mask, of its tokens and the new ones")
    return cached[0].seen if cached else 0


def _padding_mask(attention_mask: Tensor | None, B: int, length: int) -> Tensor | None:
    """The mask as booleans, or None when nothing is padding, for which attention has faster kernels."""
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != (B, length):
        given = tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise ValueError(
            f"attention_mask must have shape (batch, tokens seen so far and now) = {(B, length)}, got {given}"
        )
    attention_mask = attention_mask.bool()
    return None if attention_mask.all() else attention_mask


def _positions(
    position_ids: Tensor | None, attention_mask: Tensor | None, past: int, B: int, T: int, device: torch.device
) -> Tensor:
    """Positions (B or 1, T); padding before a text does not count."""
    if position_ids is not None:
        if tuple(position_ids.shape) not in ((1, T), (B, T)):
            raise ValueError(f"position_ids must have shape ({B} or 1, {T}), got {tuple(position_ids.shape)}")
        refuse_restarts(position_ids, None if attention_mask is None else attention_mask[:, past:])
        return position_ids
    if attention_mask is None:
        return torch.arange(past, past + T, device=device)[None]
    return (attention_mask.cumsum(1) - 1).clamp_min(0)[:, past:]
