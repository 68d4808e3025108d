"""Perplexity and bits per byte of held-out text, and where its tokens went.

Shapes: B batch, T tokens, O operators.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from torch.nn.functional import cross_entropy

from chiaroscuro.data import TokenWindows
from chiaroscuro.modeling import ChiarForCausalLM, RoutingTrace
from chiaroscuro.progress import tracked
from chiaroscuro.routing.evaluating import evaluating

LARGEST_EXPONENT = 700.0  # that a float holds the exponential of
TOGETHER = 8192  # tokens at a time: what they are predicted by takes memory for each entry of the vocabulary


@dataclass(frozen=True)
class Evaluation:
    """How well a model does on a split, and where the tokens went.

    loss: nats per token, or per sequence for a classifier. tokens: how many were predicted, or read by a classifier.
    routing: per layer with a choice, the share of the tokens that went to each operator. perplexity, and bits_per_byte
    of the text behind the predicted tokens: of a language model. accuracy: of a classifier, or of the answers in
    recall. tasks: the accuracy of each further task of a language model trained on several.
    """

    loss: float
    tokens: int
    routing: dict[str, dict[str, float]]
    perplexity: float | None = None
    bits_per_byte: float | None = None
    accuracy: float | None = None
    tasks: dict[str, float] | None = None

    @classmethod
    def of_text(
        cls, nats: float, predicted: np.ndarray, token_bytes: np.ndarray | None, routing: dict[str, dict[str, float]]
    ) -> Self:
        """From the summed loss, how often each id was predicted, and the bytes behind each, None where they are not
        known."""
        tokens = int(predicted.sum())
        ids = predicted.nonzero()[0]
        text_bytes = 0 if token_bytes is None else int(token_bytes[ids] @ predicted[ids])
        bits = nats / math.log(2) / text_bytes if text_bytes else None
        return cls(nats / tokens, tokens, routing, perplexity_of(nats / tokens), bits)


def perplexity_of(loss: float) -> float:
    """The exponential of nats per token, or the largest that a float holds."""
    return math.exp(min(loss, LARGEST_EXPONENT))


def windows_together(length: int) -> int:
    """How many windows of so many tokens are taken at a time."""
    return min(16, max(1, TOGETHER // length))


class ShareCounter:
    """Adds up, over batches, the tokens of each layer that went to each operator."""

    def __init__(self) -> None:
        self.tokens: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))

    def add(self, traces: Iterable[RoutingTrace]) -> None:
        for trace in traces:
            for operator, tokens in zip(trace.operators, trace.gates.float().sum((0, 1)).tolist(), strict=True):
                self.tokens[str(trace.layer)][operator] += tokens

    def mean(self) -> dict[str, dict[str, float]]:
        """The share of each operator, by layer."""
        return {
            layer: {operator: tokens / sum(counts.values()) for operator, tokens in counts.items()}
            for layer, counts in self.tokens.items()
        }


def evaluate(
    model: ChiarForCausalLM,
    windows: TokenWindows,
    token_bytes: np.ndarray | None,
    batch_size: int | None = None,
    show_progress: bool = False,
) -> Evaluation:
    """Every token but the first of `windows` predicted once, from what precedes it in its window.

    `token_bytes` holds the bytes behind each token id (`chiaroscuro.data.token_bytes`), None where they are not known
    and bits per byte cannot be told. `batch_size` windows are taken at a time, without it up to sixteen. The model is
    run in evaluation mode, its thresholds as they are.
    """
    nats, predicted, shares = 0.0, np.zeros(model.config.vocab_size, dtype=np.int64), ShareCounter()
    batch_size = batch_size or windows_together(windows.length)
    starts = range(0, len(windows), batch_size)
    with evaluating(model):
        for start in tracked(starts, "evaluating", show_progress):
            ids_BT = windows.batch(range(start, start + batch_size)).to(model.device)
            output = model(ids_BT, use_cache=False, output_routing=True)
            targets = ids_BT[:, 1:].flatten()
            nats += float(cross_entropy(output.logits[:, :-1].flatten(0, 1).float(), targets, reduction="sum"))
            predicted += np.bincount(targets.cpu().numpy(), minlength=len(predicted))
            shares.add(output.routing)
    return Evaluation.of_text(nats, predicted, token_bytes, shares.mean())


def unigram_perplexity(train: np.ndarray, windows: TokenWindows, vocab_size: int) -> float:
    """Perplexity of the tokens that `evaluate` predicts under their frequencies in `train`, with add-one smoothing:
    what a model knows that looks at no context."""
    counts = np.bincount(train, minlength=vocab_size) + 1
    nats_per_id = -np.log(counts / counts.sum())
    predicted = np.concatenate([windows[index]["input_ids"][1:].numpy() for index in range(len(windows))])
    return float(np.exp(nats_per_id[predicted].mean()))
