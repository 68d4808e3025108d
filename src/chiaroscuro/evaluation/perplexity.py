"""Perplexity and bits per byte of held-out text, and where its tokens went.

Shapes: B batch, T tokens, O operators.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.progress import track
from torch.nn.functional import cross_entropy

from chiaroscuro.data import TokenWindows
from chiaroscuro.modeling import ChiarForCausalLM
from chiaroscuro.routing import utilisation


@dataclass(frozen=True)
class Evaluation:
    """loss: nats per token. bits_per_byte: of the text behind the predicted tokens. routing: per layer with a choice,
    the share of the tokens that went to each operator."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    routing: dict[str, dict[str, float]] = field(default_factory=dict)


@torch.no_grad()
def evaluate(
    model: ChiarForCausalLM,
    windows: TokenWindows,
    token_bytes: np.ndarray,
    batch_size: int = 16,
    show_progress: bool = False,
) -> Evaluation:
    """Every token but the first of `windows` predicted once, from what precedes it in its window.

    `token_bytes` holds the bytes behind each token id (`chiaroscuro.data.token_bytes`). The model is run in
    evaluation mode, its thresholds as they are.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    nats, tokens, text_bytes = 0.0, 0, 0
    shares: dict[str, np.ndarray] = {}
    operators: dict[str, tuple[str, ...]] = {}
    starts = range(0, len(windows), batch_size)
    for start in track(starts, "evaluating", transient=True, disable=not show_progress):
        ids_BT = windows.batch(range(start, min(start + batch_size, len(windows)))).to(device)
        output = model(ids_BT, use_cache=False, output_routing=True)
        targets = ids_BT[:, 1:].flatten()
        nats += float(cross_entropy(output.logits[:, :-1].flatten(0, 1).float(), targets, reduction="sum"))
        tokens += len(targets)
        text_bytes += int(token_bytes[targets.cpu().numpy()].sum())
        for trace in output.routing:
            weighted = utilisation(trace.gates.float()).cpu().numpy() * len(ids_BT)
            operators[str(trace.layer)] = trace.operators
            shares[str(trace.layer)] = shares.get(str(trace.layer), 0) + weighted
    model.train(was_training)
    routing = {
        layer: dict(zip(operators[layer], (total / len(windows)).tolist(), strict=True))
        for layer, total in shares.items()
    }
    loss = nats / tokens
    bits_per_byte = nats / math.log(2) / text_bytes if text_bytes else float("nan")
    return Evaluation(loss, math.exp(min(loss, 700.0)), bits_per_byte, tokens, routing)


def unigram_perplexity(train: np.ndarray, windows: TokenWindows, vocab_size: int) -> float:
    """Perplexity of the tokens that `evaluate` predicts under their frequencies in `train`, with add-one smoothing:
    what a model knows that looks at no context."""
    counts = np.bincount(train, minlength=vocab_size) + 1
    nats_per_id = -np.log(counts / counts.sum())
    last = len(windows) * (windows.length - 1)
    return float(np.exp(nats_per_id[windows.tokens[1 : last + 1]].mean()))
