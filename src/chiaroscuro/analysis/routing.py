"""Where the tokens of a text go, layer by layer.

Shapes: T tokens.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from chiaroscuro.modeling import ChiarForCausalLM, ChiarForSequenceClassification


@dataclass(frozen=True)
class LayerRoute:
    """One layer. operators: their names, the cheapest first. choice: per token an index into them. entropy: per token
    the spectral entropy the layer saw, empty where the layer has no choice. shares: of the tokens, by operator."""

    layer: int
    operators: list[str]
    choice: list[int]
    entropy: list[float]
    shares: dict[str, float]


@dataclass(frozen=True)
class TextRoute:
    """The tokens of a text and, per layer, where they went. meta_gate: per token, where the model has a MetaRouter."""

    tokens: list[str]
    layers: list[LayerRoute]
    meta_gate: list[float] | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def route_text(
    model: ChiarForCausalLM | ChiarForSequenceClassification, tokenizer: PreTrainedTokenizerFast, text: str
) -> TextRoute:
    """Run `model` on `text` and read off the routing. Raises ValueError for text without tokens or longer than the
    model takes."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    if not ids:
        raise ValueError("the text is empty: give at least one character")
    ids_BT = torch.tensor([ids], device=model.device)
    output = model(ids_BT, use_cache=False, output_routing=True)
    traces = {trace.layer: trace for trace in output.routing}
    layers = []
    for index, operators in enumerate(model.config.layer_operators or ()):
        if index in traces:
            trace = traces[index]
            choice, entropy = trace.choice[0].tolist(), trace.entropy[0].tolist()
            layers.append(LayerRoute(index, list(operators), choice, entropy, trace.shares()))
        else:
            layers.append(LayerRoute(index, list(operators), [0] * len(ids), [], {operators[0]: 1.0}))
    gate = output.meta_gate
    meta_gate = None if gate is None else gate[0, :, 0].expand(len(ids)).tolist()
    return TextRoute(_pieces(text, encoded["offset_mapping"]), layers, meta_gate)


def _pieces(text: str, spans: list[tuple[int, int]]) -> list[str]:
    """The text behind each token. A character shared by several stands with the first, a dot with the others."""
    shown_to = 0
    pieces = []
    for start, end in spans:
        pieces.append(text[max(start, shown_to) : end] or "·")
        shown_to = max(shown_to, end)
    return pieces
