"""Routed attention put into a decoder of transformers that was trained without it.

The attention modules stay where they are, with the names of their weights; they get a router and a light operator
beside them, and a forward pass that attends for a share of the tokens. At a share of one it is the old one.

Shapes: B batch, T tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from chiaroscuro.mixers import Context, DCTMixer, Mixer, NothingMixer
from chiaroscuro.modeling.loading import causal_class, load_config, load_model
from chiaroscuro.modeling.own_attention import GPT2Style, LlamaStyle, OwnAttention, tokens_seen, valid_tokens
from chiaroscuro.modeling.packed import refuse_named, refuse_restarts
from chiaroscuro.ops.accelerator import rounds_to_tf32, without_autocast
from chiaroscuro.routing import RoutedMixer, ThresholdRouter, at_share, calibrate, check_share, threshold_routers
from chiaroscuro.routing.evaluating import evaluating

SETTINGS = "chiaroscuro"  # where the configuration says what was done to the model
Light = Literal["none", "dct"]
# By how many deviations rounding may move logits; other kinds of attention move them further.
APART, APART_COARSELY = 1e-3, 0.05
STYLES: tuple[type[OwnAttention], ...] = (LlamaStyle, GPT2Style)


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
    chosen = sorted(found)[1:-1] if layers is None else sorted(set(layers))
    if layers is None and not chosen:
        raise ValueError(f"there is no layer between the first and the last of {sorted(found)}: give layers")
    if not chosen or not set(chosen) <= set(found):
        raise ValueError(f"layers must be some of {sorted(found)}, got {chosen}")
    try:
        for index in chosen:
            _route(found[index], light)
        if check:
            if any(parameter.is_meta for parameter in model.parameters()):
                raise ValueError("weights that are kept elsewhere cannot be checked: retrofit the model before")
            _check_same(model)
    except Exception:
        for index in chosen:
            _leave(found[index])
        raise
    for each in {model, model.base_model}:
        each.register_forward_pre_hook(_refuse, with_kwargs=True)
    setattr(model.config, SETTINGS, {"layers": chosen, "light": light, "share": 1.0})
    return model


def _refuse(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A hook of models: raises ValueError where they are asked for weights of attention that there are not, or given
    several texts in a row, of which a layer might see nothing."""
    if getattr(model.config, SETTINGS)["share"] == 1.0:
        return
    asked = kwargs.get("output_attentions")
    if model.config.output_attentions if asked is None else asked:
        raise ValueError("output_attentions: a retrofitted layer has no weights for the tokens that do not attend")
    refuse_named(kwargs)
    positions, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
    if positions is not None and (mask is None or getattr(mask, "ndim", 0) == 2):  # not from masks made for layers
        refuse_restarts(positions, None if mask is None else mask[:, -positions.shape[1] :].bool())


def set_share(model: PreTrainedModel, share: float, input_ids_BT: Tensor) -> None:
    """Attend for a share of the tokens in each routed layer of a retrofitted model, those with the highest entropy, as
    found on `input_ids_BT`, some thousand tokens of held-out text. Raises ValueError for a share outside [0, 1] and for
    a model that was not retrofitted."""
    check_share(share)
    routers = threshold_routers(model)
    if not routers or not is_retrofitted(model.config):
        raise ValueError(f"this {type(model).__name__} was not retrofitted")
    share_before = getattr(model.config, SETTINGS)["share"]
    thresholds_before = [router.thresholds.tolist() for router in routers]
    keep_share(model, share)
    try:
        calibrate(model, input_ids_BT)
    except Exception:
        keep_share(model, share_before)
        for router, thresholds in zip(routers, thresholds_before, strict=True):
            router.set_thresholds(*thresholds)
        raise


def keep_share(model: PreTrainedModel, share: float) -> None:
    """What `set_share` sets but for the thresholds."""
    for router in threshold_routers(model):
        router.share = share
    setattr(model.config, SETTINGS, getattr(model.config, SETTINGS) | {"share": share})


def is_retrofitted(config: PreTrainedConfig) -> bool:
    """Whether a configuration is that of a model that was retrofitted."""
    settings = getattr(config, SETTINGS, None)
    return isinstance(settings, dict) and set(settings) == {"layers", "light", "share"}


def load_retrofitted(folder: Path | str, **kwargs: Any) -> PreTrainedModel:
    """A retrofitted model from the folder that its `save_pretrained` made; `kwargs` as for `from_pretrained`. (Other
    ways to load it give the model without routing, and a warning of weights that are not used.) Raises ValueError when
    the model in `folder` was not retrofitted."""
    config = load_config(Path(folder))
    if not is_retrofitted(config):
        raise ValueError(f"the model in {folder} was not retrofitted")
    settings = getattr(config, SETTINGS)
    check_share(settings["share"])
    cls: Any = causal_class(config)

    class Retrofitted(cls):
        _keep_in_fp32_modules_strict = {*(cls._keep_in_fp32_modules_strict or ()), "thresholds"}

        def __init__(self, config: Any, *args: Any, **kwargs: Any):
            super().__init__(config, *args, **kwargs)
            retrofit(self, settings["layers"], settings["light"], check=False)
            keep_share(self, settings["share"])

    model = load_model(Retrofitted, Path(folder), config, **kwargs)
    model.__class__ = cls
    return model


class RoutedAttention(nn.Module):
    """What a retrofitted attention module is beside its own class. `routed` holds the operators and the router."""

    routed: RoutedMixer
    layer_idx: int

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        router = cast(ThresholdRouter, self.routed.router)
        if router.share == 1.0:
            return super().forward(hidden_states, *args, **kwargs)
        if args:
            raise TypeError("retrofitted attention takes all but the hidden states by name")
        mask = kwargs.get("attention_mask")
        cache = kwargs.get("cache", kwargs.get("past_key_values"))  # renamed in transformers 5.24
        context = Context(
            valid_BT=valid_tokens(mask, tokens_seen(cache, self.layer_idx), hidden_states.shape[1]),
            rotary=kwargs.get("position_embeddings"),
            attention_mask=mask,
            cache=cache,
        )
        cast(OwnAttention, self.routed.mixers["attention"]).belongs_to(self)  # which may be a replica
        return self.routed(hidden_states, context)[0], None

    def __reduce__(self) -> tuple[Any, ...]:
        """Its class is found again from the one that it was made of."""
        return _unpickled, (type(self).__mro__[2],), self.__dict__


def _routed_class(cls: type[nn.Module]) -> Any:
    return type(f"Routed{cls.__name__}", (RoutedAttention, cls), {})


def _unpickled(cls: type[nn.Module]) -> Any:
    """A routed attention of this class, still without anything in it."""
    routed = _routed_class(cls)
    return routed.__new__(routed)


def _style(module: nn.Module) -> type[OwnAttention] | None:
    return next((style for style in STYLES if style.fits(module)), None)


def _route(attention: Any, light: Light) -> None:
    """Make an attention module a `RoutedAttention`, which keeps its own class as a base."""
    config = attention.config
    window = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
    if window and window < config.max_position_embeddings:  # none is also said as zero
        raise ValueError(f"layer {attention.layer_idx} attends within a window of {window} tokens, which is not routed")
    otherwise = {
        "caps the scores of its attention": getattr(config, "attn_logit_softcapping", None) is not None,
        "clips queries, keys and values": getattr(config, "clip_qkv", None) is not None,
        "scales queries by their positions": bool(
            (getattr(config, "rope_parameters", None) or {}).get("llama_4_scaling_beta")
        ),
        "attends to another model's states": bool(getattr(config, "add_cross_attention", False)),
        "has a forward method of its own, as when it is spread over devices (retrofit it before)": "forward"
        in vars(attention),
        "has weights that are quantized": not any(weight.is_floating_point() for weight in attention.parameters()),
    }
    for what, it_does in otherwise.items():
        if it_does:
            raise ValueError(f"layer {attention.layer_idx} {what}, which is not routed")
    style = _style(attention)
    assert style is not None
    own = style(attention)
    operators: dict[str, Mixer] = {"none": NothingMixer(), "dct": DCTMixer(own.width, start=0.0)}
    if light not in operators:
        raise ValueError(f"unknown light operator {light!r}; known: {', '.join(operators)}")
    routed = RoutedMixer(
        {light: operators[light], "attention": own}, ThresholdRouter(own.width, 2, attention.layer_idx, share=1.0)
    )
    weight = next(weight for weight in attention.parameters() if weight.is_floating_point())
    attention.__class__ = _routed_class(type(attention))
    attention.routed = nn.Module.to(routed, weight.device, weight.dtype)


def _leave(attention: Any) -> None:
    """Undo `_route`, if it was done."""
    if isinstance(attention, RoutedAttention):
        attention.__class__ = type(attention).__mro__[2]
        del attention.routed


def _check_same(model: PreTrainedModel) -> None:
    """Raises ValueError when routed attention, asked for every token, is not what the model computes by itself."""
    routers = threshold_routers(model)
    if model.get_output_embeddings() is None:
        raise ValueError(f"{type(model).__name__} gives no logits to check by: retrofit a causal language model")
    ids_BT = torch.arange(2 * 24, device=model.device).view(2, 24) % model.config.vocab_size
    with evaluating(model), without_autocast(model.device):
        own = model(ids_BT, use_cache=False).logits
        for router in routers:
            router.share = 0.5  # at a share of one the module's own attention would answer
        try:
            with at_share(model, 1.0):
                routed = model(ids_BT, use_cache=False).logits
        except RuntimeError as error:
            raise ValueError(f"{type(model).__name__} computes its attention in another way: {error}") from error
        for router in routers:
            router.share = 1.0
    apart = float((routed - own).abs().max() / own.std())
    precise = model.dtype == torch.float64 or (model.dtype == torch.float32 and not rounds_to_tf32(model.device))
    if not apart < (APART if precise else APART_COARSELY):
        raise ValueError(
            f"{type(model).__name__} computes its attention in another way than Llama's or GPT-2's: its logits are "
            f"{apart:.1g} deviations from those of routed attention of all tokens"
        )
