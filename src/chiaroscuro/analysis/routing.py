"""Where the tokens of a text go, layer by layer, what that costs, and how well the text is predicted.

Shapes: B batch, T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from chiaroscuro.data import encode_text
from chiaroscuro.evaluation import perplexity_of
from chiaroscuro.flops import executed_flops
from chiaroscuro.modeling import ChiarForCausalLM, ChiarForSequenceClassification, RoutingTrace
from chiaroscuro.routing import ThresholdRouter, at_share, forced


@dataclass(frozen=True)
class Force:
    """Tokens that are sent to an operator whatever the router says: in a layer, by its index, the token at an index,
    or all of them (None)."""

    layer: int
    token: int | None
    operator: str


@dataclass(frozen=True)
class LayerRoute:
    """One layer. operators: their names, the cheapest first. choice: per token an index into them. shares: of the
    tokens, by operator. entropy, gate: per token the spectral entropy the layer saw and the weight of the operator it
    went to; thresholds: what the entropy, or another score, is held against. These three are empty
    where the layer has none."""

    layer: int
    operators: list[str]
    choice: list[int]
    shares: dict[str, float]
    entropy: list[float]
    gate: list[float]
    thresholds: list[float]


@dataclass(frozen=True)
class Spent:
    """Forward FLOPs of a text: of attention and of everything, as planned and as executed, and those of full attention
    in a model of the same size."""

    attention: float
    total: float
    executed: float
    full_attention: float
    full_total: float


@dataclass(frozen=True)
class TextRoute:
    """The tokens of a text and, per layer, where they went. meta_gate: per token, where the model has a MetaRouter."""

    tokens: list[str]
    layers: list[LayerRoute]
    meta_gate: list[float] | None

    @property
    def operators(self) -> list[str]:
        """Those of all layers."""
        return list(dict.fromkeys(name for layer in self.layers for name in layer.operators))


@dataclass(frozen=True)
class Reading(TextRoute):
    """A text that was read as a whole. loss, rank: per token but the first, in nats and from 1, how the model predicted
    it from those before it; empty of a classifier."""

    loss: list[float]
    rank: list[int]
    spent: Spent

    @property
    def perplexity(self) -> float | None:
        """Of all tokens but the first; None where there is no other, and of a classifier."""
        return perplexity_of(sum(self.loss) / len(self.loss)) if self.loss else None


@torch.no_grad()
def route_text(
    model: ChiarForCausalLM | ChiarForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    share: float | None = None,
    force: Sequence[Force] = (),
) -> Reading:
    """Run `model` on `text` and read off the routing. Raises ValueError for text without tokens or longer than the
    model takes.

    share: send that part of these tokens, those of the highest score, to the last operator of each layer that decides
    by thresholds, instead of what it was calibrated to. force: overrule single choices, in this order.
    """
    encoded = encode_text(tokenizer, text, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    if not ids:
        raise ValueError("the text is empty: give at least one character")
    ids_BT = torch.tensor([ids], device=model.device)
    found: list[Any] = []
    with _overruled(model, len(ids), share, force):
        executed = executed_flops(lambda: found.append(model(ids_BT, use_cache=False, output_routing=True)))
        (output,) = found
        layers = layer_routes(model, output.routing, len(ids))
    gate = output.meta_gate
    loss, rank = _predictions(output.logits[0], ids_BT[0]) if isinstance(model, ChiarForCausalLM) else ([], [])
    return Reading(
        tokens=_pieces(text, encoded["offset_mapping"]),
        layers=layers,
        meta_gate=None if gate is None else gate[0, :, 0].expand(len(ids)).tolist(),
        loss=loss,
        rank=rank,
        spent=_spent(model, output.routing, len(ids), executed),
    )


@torch.no_grad()
def next_tokens(
    model: ChiarForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    token: int,
    share: float | None = None,
    force: Sequence[Force] = (),
) -> Tensor:
    """Log-probabilities (V,) of what comes after the token at an index, under the interventions of `route_text`."""
    ids_BT = torch.tensor([encode_text(tokenizer, text)["input_ids"]], device=model.device)
    with _overruled(model, ids_BT.shape[1], share, force):
        return model(ids_BT, use_cache=False).logits[0, token].log_softmax(-1)


@contextmanager
def _overruled(model: Any, count: int, share: float | None, force: Sequence[Force]) -> Iterator[None]:
    with ExitStack() as stack:
        if share is not None:
            stack.enter_context(at_share(model, share))
        for each in force:
            stack.enter_context(forced(*_choices(model, count, each)))
        yield


def _choices(model: Any, count: int, force: Force) -> tuple[Any, Tensor]:
    """A router and the choices it is to make. Raises ValueError when the layer, the token or the operator is none."""
    if not 0 <= force.layer < len(model.model.layers):
        raise ValueError(f"there is no layer {force.layer + 1}; the model has {len(model.model.layers)}")
    mixer = model.model.layers[force.layer].mixer
    if mixer.router is None or force.operator not in mixer.operators:
        operators = " or ".join(mixer.operators)
        raise ValueError(f"layer {force.layer + 1} sends tokens to {operators}, not to {force.operator}")
    if force.token is not None and not 0 <= force.token < count:
        raise ValueError(f"there is no token {force.token + 1}; the text has {count}")
    choice_BT = torch.full((1, count), -1, device=model.device)
    choice_BT[:, slice(None) if force.token is None else force.token] = mixer.operators.index(force.operator)
    return mixer.router, choice_BT


def _thresholds(router: Any) -> list[float]:
    if not isinstance(router, ThresholdRouter):
        return []
    low, high = router.thresholds.tolist()
    return [(low + high) / 2] if router.num_operators == 2 else [low, high]


def layer_routes(model: Any, routing: Sequence[RoutingTrace], count: int) -> list[LayerRoute]:
    """Every layer's route of one row of `count` tokens, from what the model returned as `routing`."""
    traces = {trace.layer: trace for trace in routing}
    layers = []
    for index, operators in enumerate(model.config.layer_operators):
        if index in traces:
            trace = traces[index]
            chosen = trace.gates.gather(-1, trace.choice[..., None])[0, :, 0].tolist()
            thresholds = _thresholds(model.model.layers[index].mixer.router)
            choice, entropy, shares = trace.choice[0].tolist(), trace.entropy[0].tolist(), trace.shares()
            layers.append(LayerRoute(index, list(operators), choice, shares, entropy, chosen, thresholds))
        else:
            layers.append(LayerRoute(index, list(operators), [0] * count, {operators[0]: 1.0}, [], [], []))
    return layers


def _predictions(logits_TV: Tensor, ids_T: Tensor) -> tuple[list[float], list[int]]:
    logits, wanted = logits_TV[:-1], ids_T[1:]
    loss = cross_entropy(logits, wanted, reduction="none")
    rank = 1 + (logits > logits.gather(1, wanted[:, None])).sum(1)
    return loss.tolist(), rank.tolist()


def _spent(model: Any, routing: Any, count: int, executed: float) -> Spent:
    planned = model.flops(1, count, routing)
    with torch.device("meta"):
        full = type(model)(model.config.twin()).flops(1, count)
    return Spent(planned.attention, planned.total, executed, full.attention, full.total)


def _pieces(text: str, spans: list[tuple[int, int]]) -> list[str]:
    """The text behind each token. A character shared by several stands with the first, a dot with the others."""
    shown_to = 0
    pieces = []
    for start, end in spans:
        pieces.append(text[max(start, shown_to) : end] or "·")
        shown_to = max(shown_to, end)
    return pieces
