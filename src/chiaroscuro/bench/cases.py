"""What is timed: an operator, a layer, the body of a model, a training step, decoding; each against its rivals.

Half of the tokens of every row are routed to attention, exactly and at random; beside it stands routing by entropy,
with thresholds from the same input. All sides have the same size.

Shapes: B batch, T tokens, N heads, H head channels, D model channels.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, scaled_dot_product_attention

from chiaroscuro.mixers import NO_CONTEXT, AttentionMixer, Context, DCTMixer, Flops, Work
from chiaroscuro.mixers.flops import fft_flops, linear_flops
from chiaroscuro.modeling import ChiarConfig, ChiarModel
from chiaroscuro.ops import (
    Chosen,
    chosen_attention,
    filtered_idct,
    packed_attention,
    packed_dct_and_entropy,
    rotary_tables,
)
from chiaroscuro.ops.dct import by_matrix, slots
from chiaroscuro.routing import RoutedMixer, Router, ThresholdRouter, calibrate

Keys = Literal["all", "routed"]
KEYS: tuple[Keys, ...] = ("all", "routed")
TARGETS = ("op", "spectral", "layer", "model", "train", "decode", "compile")
VOCABULARY = 512


@dataclass(frozen=True)
class Sizes:
    batch: int
    length: int
    width: int
    heads: int
    layers: int = 1
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"a width of {self.width} does not divide into {self.heads} heads of an even size")


@dataclass(frozen=True)
class Case:
    """keys: whom a routed token sees. sides: what is run, ours first. check: raises AssertionError when ours computes
    something else than it should. at_most: per other side the ratio of times that we mean to reach. planned: the FLOPs
    that sides should execute; none for those that give a mask to a kernel, which then computes every pair."""

    name: str
    keys: Keys
    sides: dict[str, Callable[[], Any]]
    check: Callable[[], None]
    at_most: dict[str, float] = field(default_factory=dict)
    planned: dict[str, Callable[[], float]] = field(default_factory=dict)


def cases(target: str, sizes: Sizes | None = None) -> Iterator[Case]:
    """The cases of a target: those with bounds, or, with `sizes`, those of that size. Raises ValueError for an unknown
    target."""
    one = None if sizes is None else replace(sizes, layers=1)
    if target == "op":
        for keys, bound in zip(KEYS, (0.60, 0.30), strict=True):
            yield op(one or Sizes(1, 4096, 512, 8), keys, {} if sizes else {FULL: bound})
    elif target == "spectral":
        yield spectral(one or Sizes(1, 4096, 512, 8), {} if sizes else {DOUBLE: 1 / 3})
    elif target == "layer":
        for keys, bound, blend in zip(KEYS, (0.75, 0.48), (0.65, 0.42), strict=True):
            yield layer(one or Sizes(1, 4096, 512, 8), keys, {} if sizes else {FULL: bound, BLEND: blend})
    elif target == "model":
        for keys, bound in zip(KEYS, (0.80, 0.67), strict=True):
            yield body(sizes or Sizes(1, 4096, 512, 8, 8), keys, {} if sizes else {FULL: bound})
        for width in (256, 1024) if sizes is None else ():
            for keys in KEYS:
                yield body(Sizes(8, 256, width, width // 64, 8), keys, {FULL: 1.0})
    elif target == "train":
        for keys, bound in zip(KEYS, (0.90, 0.80), strict=True):
            yield training_step(sizes or Sizes(1, 2048, 512, 8, 8), keys, {} if sizes else {FULL: bound})
    elif target == "decode":
        for keys in KEYS:
            yield decoding(sizes or Sizes(1, 4096, 512, 8, 8), keys, {} if sizes else {FULL: 0.85})
    elif target == "compile":
        for keys in KEYS:
            yield compiled(sizes or Sizes(8, 256, 256, 4, 8), keys)
    else:
        raise ValueError(f"unknown target {target!r}; known targets: {', '.join(TARGETS)}")


OURS, ENTROPY, BLEND, FULL = "ours", "ours, routed by entropy", "dense blend", "full attention"
EAGER, DOUBLE = "ours, not compiled", "FFTs of length 2d"


def half(batch: int, length: int, device: str = "cpu") -> Tensor:
    """(B, T): True for exactly half of the tokens of each row, at random."""
    order = torch.rand(batch, length, generator=torch.Generator().manual_seed(0)).argsort(1)
    return (order < length // 2).to(device)


def close(ours: Tensor, expected: Tensor) -> None:
    """Raises AssertionError unless `ours` is `expected` to the precision of its type."""
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10}.get(ours.dtype, 2e-2)
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)


def op(sizes: Sizes, keys: Keys, at_most: dict[str, float]) -> Case:
    """Attention alone, heads already split."""
    B, T, N, H = sizes.batch, sizes.length, sizes.heads, sizes.width // sizes.heads
    options: dict[str, Any] = {"device": sizes.device, "dtype": sizes.dtype}
    q, k, v = (torch.randn(B, N, T, H, **options) for _ in range(3))
    chosen = Chosen(half(B, T, sizes.device))
    taken = [chosen.pad(chosen.take(x.transpose(1, 2))).transpose(1, 2).contiguous() for x in (q, k, v)]
    visible = chosen.pad(torch.arange(1, T + 1, device=sizes.device).repeat(B)[chosen.flat_M])

    def full() -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True)

    def ours() -> Tensor:
        if keys == "routed":
            return packed_attention(taken[0], taken[1], taken[2], chosen.counts)
        return chosen_attention(taken[0], k, v, visible)

    def check() -> None:
        mask = chosen.mask_BT
        allowed = torch.ones(T, T, dtype=torch.bool, device=sizes.device).tril()
        if keys == "routed":
            allowed = allowed & mask[:, None, None, :] | torch.eye(T, dtype=torch.bool, device=sizes.device)
        expected = scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        close(ours().transpose(1, 2).flatten(0, 1), expected.transpose(1, 2)[mask])

    def planned(mask: Tensor) -> float:
        pairs = Work.measured(mask, torch.ones_like(mask), routed_keys=keys == "routed").pairs
        return 2 * linear_flops(pairs, sizes.width, 1)

    return Case(
        f"attention op, {_shown(sizes, keys)}",
        keys,
        {OURS: _forward(ours), FULL: _forward(full)},
        check,
        at_most,
        {OURS: lambda: planned(chosen.mask_BT), FULL: lambda: planned(torch.ones_like(chosen.mask_BT))},
    )


def spectral(sizes: Sizes, at_most: dict[str, float]) -> Case:
    """Entropy of all tokens, filter and inverse transform of half of them; against all of it for all tokens, with the
    transform as the definition has it: an FFT of the vector and its mirror image."""
    D = sizes.width
    x_MD = torch.randn(sizes.batch * sizes.length, D, device=sizes.device, dtype=sizes.dtype).float()
    chosen = Chosen(half(sizes.batch, sizes.length, sizes.device))
    w = torch.rand(D, device=sizes.device)
    k = torch.arange(D, device=sizes.device)
    turn = torch.polar((0.5 / D / (1 + (k == 0).float())).sqrt(), k * (-math.pi / (2 * D)))

    def ours() -> tuple[Tensor, Tensor]:
        spectrum, entropy = packed_dct_and_entropy(x_MD)
        return entropy, filtered_idct(spectrum, w, chosen.flat_M)

    def mirrored() -> tuple[Tensor, Tensor]:
        X = (torch.fft.rfft(torch.cat((x_MD, x_MD.flip(-1)), dim=-1))[:, :-1] * turn).real
        energy = X.square()
        p = (energy / energy.sum(-1, keepdim=True)).clamp_min(1e-30)
        numbers = torch.nn.functional.pad(X * w / turn, (0, 1))
        return -(p * p.log()).sum(-1) / math.log(D), torch.fft.irfft(numbers, n=2 * D)[:, :D]

    def check() -> None:
        entropy, filtered = ours()
        expected, expected_filtered = mirrored()
        close(entropy, expected)
        close(filtered, expected_filtered[chosen.flat_M])

    sides = {OURS: _forward(ours), DOUBLE: _forward(mirrored)}
    rows = len(x_MD)
    transform = linear_flops(1, D, slots(D)) if by_matrix(D, w.device, alone=False) else fft_flops(1, D)
    planned = {
        OURS: lambda: (rows + len(chosen.flat_M)) * transform,
        DOUBLE: lambda: fft_flops(2 * rows, 2 * D),
    }
    return Case(f"spectral path, B {sizes.batch}, T {sizes.length}, d {D}", "all", sides, check, at_most, planned)


HALF, THRESHOLD = "half", "threshold"


class HalfRouter(Router):
    """Sends half of the tokens, those of a given mask, to the second operator; those from `start` on are asked for."""

    def __init__(self, hidden_size: int, half_BT: Tensor, dtype: torch.dtype):
        super().__init__(hidden_size, 2)
        self.gates_BTO = one_hot(half_BT.long(), 2).to(dtype)
        self.start = 0

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        return self.gates_BTO[:, self.start : self.start + x_BTD.shape[1]]


class _Body(nn.Module):
    """A model given embeddings."""

    def __init__(self, model: ChiarModel):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(inputs_embeds=x).last_hidden_state


class _Layer(nn.Module):
    """A norm and what follows it, as in a pre-norm layer."""

    def __init__(self, mixer: RoutedMixer, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mixer = mixer

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        mixed, _ = self.mixer(self.norm(x), context)
        return x + mixed


def layer(sizes: Sizes, keys: Keys, at_most: dict[str, float]) -> Case:
    """Norm, routing, operators with their projections, residual."""
    B, T, D, N = sizes.batch, sizes.length, sizes.width, sizes.heads
    torch.manual_seed(0)
    x = torch.randn(B, T, D, device=sizes.device, dtype=sizes.dtype)
    tables = rotary_tables(torch.arange(T, device=sizes.device)[None], D // N)
    context = Context(rotary=(tables[0].to(sizes.dtype), tables[1].to(sizes.dtype)))
    routed = RoutedMixer({"dct": DCTMixer(D), "attention": AttentionMixer(D, N, keys)}, ThresholdRouter(D, 2))
    ours, full = _Layer(routed, D), _Layer(RoutedMixer({"attention": AttentionMixer(D, N)}), D)
    for module in (ours, full):
        module.to(sizes.device, sizes.dtype).eval()
    calibrate(ours, x)
    routers = {HALF: HalfRouter(D, half(B, T, sizes.device), sizes.dtype), THRESHOLD: routed.router}

    def run(dispatch: Literal["sparse", "dense"], router: str = HALF) -> Tensor:
        routed.dispatch, routed.router = dispatch, routers[router]
        return ours(x, context)

    def planned(router: str) -> float:
        run("sparse", router)
        masks = [chosen.mask_BT for chosen in routed.route(ours.norm(x), context).chosen or ()]
        every = torch.ones_like(masks[0])
        works = [Work.measured(mask, every, keys == "routed", spectrum=True) for mask in masks]
        transforms = by_matrix(D, x.device, alone=False)
        return routed.flops([replace(work, by_matrix=transforms) for work in works]).total

    return Case(
        f"layer, {_shown(sizes, keys)}",
        keys,
        {
            OURS: _forward(lambda: run("sparse")),
            ENTROPY: _forward(lambda: run("sparse", THRESHOLD)),
            BLEND: _forward(lambda: run("dense")),
            FULL: _forward(lambda: full(x, context)),
        },
        lambda: close(_forward(lambda: run("sparse"))(), _forward(lambda: run("dense"))()),
        at_most,
        {
            OURS: _forward(lambda: planned(HALF)),
            ENTROPY: _forward(lambda: planned(THRESHOLD)),
            FULL: lambda: full.mixer.flops([Work.dense(B, T)]).total,
        },
    )


def _bodies(sizes: Sizes, keys: Keys) -> tuple[ChiarModel, ChiarModel]:
    """The body of `v2` and its full-attention twin."""
    size = {"hidden_size": sizes.width, "num_attention_heads": sizes.heads, "num_hidden_layers": sizes.layers}
    torch.manual_seed(0)
    models = [
        ChiarModel(ChiarConfig.from_recipe(recipe, vocab_size=VOCABULARY, dropout=0.0, **size, **extra))
        for recipe, extra in (("v2", {"attention_keys": keys}), ("full_attention", {}))
    ]
    for model in models:
        nn.Module.to(model, sizes.device, sizes.dtype).eval()
    return models[0], models[1]


class _Routed:
    """The layers of a model that have a choice, and who decides in them."""

    def __init__(self, model: ChiarModel, sizes: Sizes, half_BT: Tensor):
        self.layers = [part for part in model.modules() if isinstance(part, RoutedMixer) and part.router is not None]
        self.thresholds = [layer.router for layer in self.layers]
        self.half = HalfRouter(sizes.width, half_BT, sizes.dtype)

    def by(self, router: str, dispatch: Literal["sparse", "dense"] = "sparse") -> None:
        """From now on."""
        for layer, threshold in zip(self.layers, self.thresholds, strict=True):
            layer.dispatch, layer.router = dispatch, self.half if router == HALF else threshold


def body(sizes: Sizes, keys: Keys, at_most: dict[str, float]) -> Case:
    """All layers, without embedding and head, forward."""
    ours, full = _bodies(sizes, keys)
    x = torch.randn(sizes.batch, sizes.length, sizes.width, device=sizes.device, dtype=sizes.dtype)
    calibrate(_Body(ours), x)
    routed = _Routed(ours, sizes, half(sizes.batch, sizes.length, sizes.device))

    def run(router: str, dispatch: Literal["sparse", "dense"]) -> Tensor:
        routed.by(router, dispatch)
        return ours(inputs_embeds=x).last_hidden_state

    sides = {
        OURS: _forward(lambda: run(HALF, "sparse")),
        ENTROPY: _forward(lambda: run(THRESHOLD, "sparse")),
        BLEND: _forward(lambda: run(HALF, "dense")),
        FULL: _forward(lambda: full(inputs_embeds=x)),
    }

    def planned(router: str) -> float:
        routed.by(router)
        return _planned(ours, x).total

    return Case(
        f"body of v2, {_shown(sizes, keys)}",
        keys,
        sides,
        lambda: close(sides[OURS](), sides[BLEND]()),
        at_most,
        {
            OURS: _forward(lambda: planned(HALF)),
            ENTROPY: _forward(lambda: planned(THRESHOLD)),
            FULL: _forward(lambda: _planned(full, x).total),
        },
    )


def _planned(model: ChiarModel, x: Tensor, past: int = 0) -> Flops:
    """FLOPs that a model plans for these embeddings, of which the first `past` are in a cache."""
    routing = model(inputs_embeds=x, use_cache=False, output_routing=True).routing
    return model.flops(len(x), x.shape[1] - past, routing, past)


def compiled(sizes: Sizes, keys: Keys) -> Case:
    """The body given to torch.compile, beside itself without, and the same of full attention."""
    ours, full = _bodies(sizes, keys)
    x = torch.randn(sizes.batch, sizes.length, sizes.width, device=sizes.device, dtype=sizes.dtype)
    _Routed(ours, sizes, half(sizes.batch, sizes.length, sizes.device)).by(HALF)

    def run(model: Callable[..., Any]) -> Callable[[], Tensor]:
        # Without a cache, which would be an object of Python for the compiler to look into.
        return _forward(lambda: model(inputs_embeds=x, use_cache=False).last_hidden_state)

    sides = {
        OURS: run(torch.compile(ours)),
        EAGER: run(ours),
        FULL: run(full),
        f"{FULL}, compiled": run(torch.compile(full)),
    }
    return Case(
        f"torch.compile, {_shown(sizes, keys)}",
        keys,
        sides,
        lambda: close(sides[OURS](), sides[EAGER]()),
        planned={OURS: _forward(lambda: _planned(ours, x).total), FULL: _forward(lambda: _planned(full, x).total)},
    )


def training_step(sizes: Sizes, keys: Keys, at_most: dict[str, float]) -> Case:
    """Forward and backward pass of the body, and a step of AdamW."""
    ours, full = _bodies(sizes, keys)
    x = torch.randn(sizes.batch, sizes.length, sizes.width, device=sizes.device, dtype=sizes.dtype)
    routed = _Routed(ours, sizes, half(sizes.batch, sizes.length, sizes.device))
    optimisers = {model: torch.optim.AdamW(model.parameters(), lr=0.0, fused=True) for model in (ours, full)}

    def step(model: ChiarModel, dispatch: Literal["sparse", "dense"] = "sparse") -> list[Tensor]:
        routed.by(HALF, dispatch)
        model.train()
        model(inputs_embeds=x).last_hidden_state.square().mean().backward()
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
        routed.by(HALF)
        forward = _planned(model, x)
        return 3.0 * forward.total + 0.5 * forward.attention

    return Case(
        f"training step of v2, {_shown(sizes, keys)}",
        keys,
        sides,
        check,
        at_most,
        {OURS: _forward(lambda: planned(ours)), FULL: _forward(lambda: planned(full))},
    )


STEPS = 16


def decoding(sizes: Sizes, keys: Keys, at_most: dict[str, float]) -> Case:
    """Some steps of one token each behind a cached context; in each layer half of them go to attention."""
    ours, full = _bodies(sizes, keys)
    length = sizes.length + STEPS
    x = torch.randn(sizes.batch, length, sizes.width, device=sizes.device, dtype=sizes.dtype)
    # Half of the context, and half of the steps; the last of each among them, so that no key is left for others to pay.
    parts = [half(sizes.batch, tokens, sizes.device) for tokens in (sizes.length, STEPS)]
    routed = _Routed(ours, sizes, torch.cat([part ^ ~part[:, -1:] for part in parts], dim=1))
    routed.by(HALF)

    def go_on(model: ChiarModel, cache: Any, start: int, end: int) -> Any:
        routed.half.start = start
        return model(inputs_embeds=x[:, start:end], past_key_values=cache, use_cache=True)

    def steps(model: ChiarModel) -> Callable[[], Tensor]:
        cache = _forward(lambda: go_on(model, None, 0, sizes.length - 1).past_key_values)()
        _forward(lambda: go_on(model, cache, sizes.length - 1, sizes.length))()  # the cache makes room
        before = [{operator: dict(state) for operator, state in layer.states.items()} for layer in cache.layers]

        def run() -> Tensor:
            # Back to where the context ended; what was written behind it is not looked at.
            for layer, states in zip(cache.layers, before, strict=True):
                layer.states.clear()
                layer.states.update({operator: dict(state) for operator, state in states.items()})
                layer.seen = sizes.length
            found = [go_on(model, cache, t, t + 1).last_hidden_state for t in range(sizes.length, length)]
            return torch.cat(found, dim=1)

        return _forward(run)

    sides = {OURS: steps(ours), FULL: steps(full)}

    def check() -> None:
        whole = _forward(lambda: go_on(ours, None, 0, length).last_hidden_state)()
        close(sides[OURS](), whole[:, sizes.length :])

    def planned(model: ChiarModel) -> float:
        routed.half.start = 0
        return _planned(model, x, past=sizes.length).total

    return Case(
        f"decoding with v2, {_shown(sizes, keys)}",
        keys,
        sides,
        check,
        at_most,
        {OURS: _forward(lambda: planned(ours)), FULL: _forward(lambda: planned(full))},
    )


def _forward(run: Callable[[], Any]) -> Callable[[], Any]:
    def without_gradients() -> Any:
        with torch.no_grad():
            return run()

    return without_gradients


def _shown(sizes: Sizes, keys: Keys) -> str:
    layers = f", {sizes.layers} layers" if sizes.layers > 1 else ""
    return f"B {sizes.batch}, T {sizes.length}, d {sizes.width}, {sizes.heads} heads{layers}, {keys} keys"
