"""One layer: routed operators, then a feed-forward network, each with its residual and norm.

Shapes: B batch, T tokens, D model channels, O operators, M chosen tokens of all rows.
"""

from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from chiaroscuro.mixers import NO_CONTEXT, Context, FeedForward, Flops, Mixer, ShortConvolution, Work, mixer_class
from chiaroscuro.modeling.configuration import ChiarConfig
from chiaroscuro.ops import Chosen, spectral_entropy
from chiaroscuro.ops.dct import by_matrix
from chiaroscuro.ops.once import once
from chiaroscuro.routing import (
    BudgetRouter,
    RoutedMixer,
    Router,
    Routing,
    ThresholdRouter,
    dispatch,
    router_class,
    utilisation,
)


@dataclass
class RoutingTrace:
    """Where the tokens of one layer went.

    layer: its index. operators: their names. choice (B, T): index into `operators`. gates (B, T, O): weights of the
    operators' outputs, zero at padding. seen (B, T, D): the tokens as the layer saw them. entropy_read (B, T): their
    spectral entropy, where the router read it.
    """

    layer: int
    operators: tuple[str, ...]
    choice: Tensor
    gates: Tensor
    seen: Tensor
    entropy_read: Tensor | None
    entropy_dc_weight: float

    @once
    def entropy(self) -> Tensor:
        """Spectral entropy of each token as the layer saw it, (B, T)."""
        if self.entropy_read is not None:
            return self.entropy_read
        return spectral_entropy(self.seen.detach(), self.entropy_dc_weight)

    def shares(self) -> dict[str, float]:
        """Mean gate of each operator over the tokens that are not padding."""
        return dict(zip(self.operators, utilisation(self.gates.detach().float()).tolist(), strict=True))

    def work(self, index: int, routed_keys: bool, spectrum: bool, past: int = 0, window: int | None = None) -> Work:
        """What the operator at `index`, which sees so many tokens back or all, had to do, after the first `past` tokens
        if these came from a cache."""
        gates_BTO = self.gates.detach()
        return Work.measured(
            gates_BTO[..., index] > 0, gates_BTO.sum(-1) > 0, routed_keys, spectrum=spectrum, past=past, window=window
        )


class PostNorm(Mixer):
    """norm(x + mixer(x)): an operator of the paper, which ends in a norm of its own."""

    def __init__(self, mixer: Mixer, norm: nn.LayerNorm):
        super().__init__()
        self.mixer = mixer
        self.norm = norm
        self.causal = mixer.causal
        self.window = mixer.window
        self.remembers = mixer.remembers
        self.reads_mask = mixer.reads_mask

    @classmethod
    def from_config(cls, config: Any) -> Self:
        raise TypeError("PostNorm wraps a mixer and is not chosen by name")

    def forward(self, x_BTD: Tensor, chosen: Chosen | None = None, context: Context = NO_CONTEXT) -> Tensor:
        residual = x_BTD if chosen is None else chosen.take(x_BTD)
        return self.norm(residual + self.mixer(x_BTD, chosen, context))

    def remember(self, x_BTD: Tensor, context: Context) -> None:
        self.mixer.remember(x_BTD, context)

    def flops(self, work: Work) -> Flops:
        return self.mixer.flops(work)


class ChiarLayer(GradientCheckpointingLayer):
    """Pre-norm: h = x + sum_o gate_o op_o(norm(x)), then h + FFN(norm(h)).
    Post-norm (the paper's): h = sum_o gate_o norm_o(x + op_o(x)), then norm(h + FFN(h)).
    With a short convolution, that of x in place of x.
    """

    def __init__(self, config: ChiarConfig, index: int):
        super().__init__()
        assert config.layer_operators is not None
        operators = config.layer_operators[index]
        self.index = index
        self.pre_norm = config.norm_placement == "pre"
        self.idle = self.pre_norm and list(operators) == ["none"]  # nothing is mixed, and nothing need be normed for it
        self.routed_keys = config.attention_keys == "routed"
        width = config.short_convolution
        self.short_convolution = ShortConvolution(config.hidden_size, width) if width else None
        mixers = {name: mixer_class(name).from_config(config) for name in operators}
        if not self.pre_norm:
            mixers = {name: PostNorm(mixer, _norm(config)) for name, mixer in mixers.items()}
        self.mixer = RoutedMixer(
            mixers,
            build_router(config, index, len(operators)) if len(operators) > 1 else None,
            config.dispatch,  # type: ignore[arg-type]
            config.entropy_dc_weight,
        )
        self.mixer_norm = _norm(config) if self.pre_norm and not self.idle else nn.Identity()
        networks = len(operators) if config.feed_forward == "per_operator" else 1
        self.feed_forwards = nn.ModuleList(FeedForward.from_config(config) for _ in range(networks))
        self.feed_forward_norm = _norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, hidden_BTD: Tensor, context: Context, meta_gate: Tensor | None = None, past_key_values: Any = None
    ) -> tuple[Tensor, RoutingTrace | None]:
        """The layer's output, blended with its input where a MetaRouter's gate is given, and where its tokens went if
        they had a choice and somebody wants to know (`Context.traced`)."""
        before_BTD = hidden_BTD
        states = None if past_key_values is None else past_key_values.layers[self.index].states
        if self.short_convolution is not None:
            state = None if states is None else states["short_convolution"]
            hidden_BTD = self.short_convolution(hidden_BTD, replace(context, state=state))
        seen_BTD, routing = self.mixer_norm(hidden_BTD), None
        if not self.idle:
            mixed, routing = self.mixer(seen_BTD, context, states=states)
        if self.pre_norm:
            if not self.idle:
                hidden_BTD = hidden_BTD + self.dropout(mixed)
            hidden_BTD = hidden_BTD + self.dropout(self._feed_forward(self.feed_forward_norm(hidden_BTD), routing))
        else:
            if routing is not None and context.valid_BT is not None:
                # Padding went to no operator, and the norm of a vector of zeros has a gradient of 1 / sqrt(eps).
                mixed = torch.where(context.valid_BT[..., None], mixed, hidden_BTD)
            hidden_BTD = self.feed_forward_norm(mixed + self.dropout(self._feed_forward(mixed, routing)))
        if meta_gate is not None:
            hidden_BTD = torch.lerp(before_BTD, hidden_BTD, meta_gate)
        if routing is None or not context.traced:
            return hidden_BTD, None
        trace = RoutingTrace(
            self.index,
            self.mixer.operators,
            routing.choice_BT,
            routing.gates_BTO,
            seen_BTD,
            routing.entropy_BT,
            self.mixer.entropy_dc_weight,
        )
        return hidden_BTD, trace

    def _feed_forward(self, x_BTD: Tensor, routing: Routing | None) -> Tensor:
        if routing is None or len(self.feed_forwards) == 1:
            return self.feed_forwards[0](x_BTD)
        networks = cast(list[FeedForward], self.feed_forwards)
        return dispatch(networks, x_BTD, routing, lambda index: NO_CONTEXT, self.mixer.sparse)

    def flops(self, batch_size: int, length: int, trace: RoutingTrace | None = None, past: int = 0) -> Flops:
        """Forward FLOPs: of the routing in `trace`, or else of tokens spread evenly over positions, each operator
        with the share that the router is to give it."""
        windows, router = self.mixer.windows, self.mixer.router
        spectrum = router is not None and router.reads_entropy
        dense = Work.expected(batch_size, length, spectrum=spectrum, past=past)
        if trace is not None and self.mixer.sparse:
            works = [
                trace.work(index, self.routed_keys, spectrum, past, window) for index, window in enumerate(windows)
            ]
        else:
            shares = router.shares if router is not None and self.mixer.sparse else (1.0,) * len(windows)
            works = [
                Work.expected(batch_size, length, share, self.routed_keys, spectrum, past, window)
                for share, window in zip(shares, windows, strict=True)
            ]
        weight = self.feed_forward_norm.weight
        transforms = by_matrix(weight, len(weight))
        total = self.mixer.flops([replace(work, by_matrix=transforms) for work in works])
        if self.short_convolution is not None:
            total = total + self.short_convolution.flops(dense.tokens)
        networks = works if len(self.feed_forwards) > 1 else [dense]
        for feed_forward, work in zip(cast(list[FeedForward], self.feed_forwards), networks, strict=True):
            total = total + feed_forward.flops(work)
        return total


def build_router(config: ChiarConfig, index: int, num_operators: int) -> Router:
    """The router of one layer, by the configuration's name for it."""
    cls, sizes = router_class(config.router), (config.hidden_size, num_operators, index)
    if cls is ThresholdRouter:
        return ThresholdRouter(*sizes, config.routed_share, config.tau_low, config.tau_high)
    return cls(*sizes, config.routed_share) if issubclass(cls, BudgetRouter) else cls(*sizes)


def _norm(config: ChiarConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
