"""Cases of whole models, of the recipe `v2` or another: a forward pass of the body, compiled or not, a training step,
decoding.

Shapes: B batch, T tokens, N heads, H head channels, D model channels.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from chiaroscuro.bench.case import (
    BLEND,
    EAGER,
    ENTROPY,
    FULL,
    HALF,
    OURS,
    OWN,
    RECURRENCE,
    Case,
    HalfRouter,
    Keys,
    Sizes,
    close,
    forward_only,
    half,
    shown,
)
from chiaroscuro.mixers import Flops
from chiaroscuro.modeling import ChiarConfig, ChiarModel
from chiaroscuro.routing import RoutedMixer, ThresholdRouter, calibrate

VOCABULARY = 512
STEPS = 16  # tokens that are decoded


def _tokens(sizes: Sizes, length: int) -> Tensor:
    """Ids (B, T). With as few that differ, many recur, as in text."""
    return torch.randint(VOCABULARY, (sizes.batch, length), device=sizes.device)


def _bodies(recipe: str, sizes: Sizes, keys: Keys) -> tuple[ChiarModel, ChiarModel]:
    """The body of a recipe and its full-attention twin."""
    config = ChiarConfig.from_recipe(
        recipe,
        vocab_size=VOCABULARY,
        dropout=0.0,
        attention_keys=keys,
        hidden_size=sizes.width,
        num_attention_heads=sizes.heads,
        num_hidden_layers=sizes.layers,
    )
    torch.manual_seed(0)
    ours, full = (ChiarModel(each) for each in (config, config.twin()))
    for model in (ours, full):
        nn.Module.to(model, sizes.device, sizes.dtype).eval()
    return ours, full


class _Routed:
    """The layers of a model that have a choice, and who decides in them."""

    def __init__(self, model: ChiarModel, sizes: Sizes, half_BT: Tensor):
        self.layers = [part for part in model.modules() if isinstance(part, RoutedMixer) and part.router is not None]
        self.own = [cast(ThresholdRouter, layer.router) for layer in self.layers]
        self.halves = [HalfRouter(own, half_BT, sizes.dtype) for own in self.own]

    def by(self, router: str, dispatch: Literal["sparse", "dense"] = "sparse") -> None:
        """From now on."""
        for layer, chosen in zip(self.layers, self.halves if router == HALF else self.own, strict=True):
            layer.dispatch, layer.router = dispatch, chosen

    def start_at(self, start: int) -> None:
        """The next tokens to be asked for are those from `start` on."""
        for each in self.halves:
            each.start = start


def body(sizes: Sizes, keys: Keys, at_most: dict[str, float], recipe: str = "v2") -> Case:
    """Embedding and all layers, without the head, forward."""
    ours, full = _bodies(recipe, sizes, keys)
    ids_BT = _tokens(sizes, sizes.length)
    calibrate(ours, ids_BT)
    routed = _Routed(ours, sizes, half(sizes.batch, sizes.length, sizes.device))
    by_own = RECURRENCE if ours.config.router == "recurrence" else ENTROPY

    def run(router: str, dispatch: Literal["sparse", "dense"]) -> Tensor:
        routed.by(router, dispatch)
        return ours(ids_BT).last_hidden_state

    sides = {
        OURS: forward_only(lambda: run(HALF, "sparse")),
        by_own: forward_only(lambda: run(OWN, "sparse")),
        BLEND: forward_only(lambda: run(HALF, "dense")),
        FULL: forward_only(lambda: full(ids_BT)),
    }

    def planned(router: str) -> float:
        routed.by(router)
        return _planned(ours, ids_BT).total

    return Case(
        f"body of {recipe}, {shown(sizes, keys)}",
        keys,
        sides,
        lambda: close(sides[OURS](), sides[BLEND]()),
        at_most,
        {
            OURS: forward_only(lambda: planned(HALF)),
            by_own: forward_only(lambda: planned(OWN)),
            FULL: forward_only(lambda: _planned(full, ids_BT).total),
        },
    )


def _planned(model: ChiarModel, ids_BT: Tensor, past: int = 0) -> Flops:
    """FLOPs that a model plans for these tokens, of which the first `past` are in a cache."""
    routing = model(ids_BT, use_cache=False, output_routing=True).routing
    return model.flops(len(ids_BT), ids_BT.shape[1] - past, routing, past)


def compiled(sizes: Sizes, keys: Keys) -> Case:
    """The body given to torch.compile, beside itself without, and the same of full attention. Its check raises
    ValueError where torch cannot compile, which takes a compiler for C++."""
    from torch._dynamo.exc import BackendCompilerFailed  # a second to import

    ours, full = _bodies("v2", sizes, keys)
    ids_BT = _tokens(sizes, sizes.length)
    _Routed(ours, sizes, half(sizes.batch, sizes.length, sizes.device)).by(HALF)

    def run(model: Callable[..., Any]) -> Callable[[], Tensor]:
        # Without a cache, which would be an object of Python for the compiler to look into.
        return forward_only(lambda: model(ids_BT, use_cache=False).last_hidden_state)

    sides = {
        OURS: run(torch.compile(ours)),
        EAGER: run(ours),
        FULL: run(full),
        f"{FULL}, compiled": run(torch.compile(full)),
    }

    def check() -> None:
        try:
            close(sides[OURS](), sides[EAGER]())
        except BackendCompilerFailed as error:
            raise ValueError(f"torch cannot compile on this machine: {str(error).splitlines()[0]}") from error

    return Case(
        f"torch.compile, {shown(sizes, keys)}",
        keys,
        sides,
        check,
        planned={
            OURS: forward_only(lambda: _planned(ours, ids_BT).total),
            FULL: forward_only(lambda: _planned(full, ids_BT).total),
        },
    )


def training_step(sizes: Sizes, keys: Keys, at_most: dict[str, float], recipe: str = "v2") -> Case:
    """Forward and backward pass of the body, and a step of AdamW. A router that explores decides by itself."""
    ours, full = _bodies(recipe, sizes, keys)
    ids_BT = _tokens(sizes, sizes.length)
    calibrate(ours, ids_BT)
    routed = _Routed(ours, sizes, half(sizes.batch, sizes.length, sizes.device))
    router = OWN if any(own.explores for own in routed.own) else HALF
    optimisers = {model: torch.optim.AdamW(model.parameters(), lr=0.0, fused=True) for model in (ours, full)}

    def step(model: ChiarModel, dispatch: Literal["sparse", "dense"] = "sparse") -> list[Tensor]:
        routed.by(router, dispatch)
        model.train()
        torch.manual_seed(0)  # the same tokens are explored every time
        model(ids_BT).last_hidden_state.square().mean().backward()
        found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        optimisers[model].step()
        optimisers[model].zero_grad()
        return found

    def check() -> None:
        for sparse, dense in zip(step(ours), step(ours, "dense"), strict=True):
            close(sparse, dense)

    sides = {OURS: lambda: step(ours), BLEND: lambda: step(ours, "dense"), FULL: lambda: step(full)}

    def planned(model: ChiarModel) -> float:
        """The backward pass of a product takes two, that of attention five instead of two, one of them being the
        scores again."""
        routed.by(router)
        torch.manual_seed(0)
        forward = _planned(model, ids_BT)
        return 3.0 * forward.total + 0.5 * forward.attention

    return Case(
        f"training step of {recipe}, {shown(sizes, keys)}",
        keys,
        sides,
        check,
        at_most,
        {OURS: forward_only(lambda: planned(ours)), FULL: forward_only(lambda: planned(full))},
    )


def decoding(sizes: Sizes, keys: Keys, at_most: dict[str, float], recipe: str = "v2") -> Case:
    """Some steps of one token each behind a cached context; in each layer half of them go to attention."""
    ours, full = _bodies(recipe, sizes, keys)
    length = sizes.length + STEPS
    ids_BT = _tokens(sizes, length)
    # Half of the context, and half of the steps; the last of each among them, so that no key is left for others to pay.
    parts = [half(sizes.batch, tokens, sizes.device) for tokens in (sizes.length, STEPS)]
    routed = _Routed(ours, sizes, torch.cat([part ^ ~part[:, -1:] for part in parts], dim=1))
    routed.by(HALF)

    def go_on(model: ChiarModel, cache: Any, start: int, end: int) -> Any:
        routed.start_at(start)
        return model(ids_BT[:, start:end], past_key_values=cache, use_cache=True)

    def steps(model: ChiarModel) -> Callable[[], Tensor]:
        cache = forward_only(lambda: go_on(model, None, 0, sizes.length - 1).past_key_values)()
        forward_only(lambda: go_on(model, cache, sizes.length - 1, sizes.length))()  # the cache makes room
        before = [{operator: dict(state) for operator, state in layer.states.items()} for layer in cache.layers]

        def run() -> Tensor:
            # Back to where the context ended; what was written behind it is not looked at.
            for layer, states in zip(cache.layers, before, strict=True):
                layer.states.clear()
                layer.states.update({operator: dict(state) for operator, state in states.items()})
                layer.seen = sizes.length
            found = [go_on(model, cache, t, t + 1).last_hidden_state for t in range(sizes.length, length)]
            return torch.cat(found, dim=1)

        return forward_only(run)

    sides = {OURS: steps(ours), FULL: steps(full)}

    def check() -> None:
        whole = forward_only(lambda: go_on(ours, None, 0, length).last_hidden_state)()
        close(sides[OURS](), whole[:, sizes.length :])

    def planned(model: ChiarModel) -> float:
        routed.start_at(0)
        return _planned(model, ids_BT, past=sizes.length).total

    return Case(
        f"decoding with {recipe}, {shown(sizes, keys)}",
        keys,
        sides,
        check,
        at_most,
        {OURS: forward_only(lambda: planned(ours)), FULL: forward_only(lambda: planned(full))},
    )
