"""Perplexity of a text longer than a model is shown at once, for any causal language model of transformers.

Shapes: B batch, T tokens of a window, S predicted tokens of a window.
"""

from inspect import signature
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from chiaroscuro.evaluation.perplexity import Evaluation, windows_together
from chiaroscuro.progress import tracked
from chiaroscuro.routing.evaluating import evaluating


def evaluate_sliding(
    model: Any,
    tokens: np.ndarray,
    token_bytes: np.ndarray | None,
    window: int,
    stride: int,
    batch_size: int | None = None,
    show_progress: bool = False,
) -> Evaluation:
    """Every token but the first predicted once, from at least `window - stride` tokens before it, or all there are.

    A window of `window` tokens moves over the text by `stride`, and only what is new in it is predicted. The smaller
    the stride, the more context and the more work; perplexities can be compared only at the same window and stride.
    tokens: ids of one text. token_bytes: bytes of text behind each id (`chiaroscuro.data.token_bytes`), None where they
    are not known. `batch_size` windows are taken at a time, without it up to sixteen. The model is run in evaluation
    mode. Raises ValueError for a stride outside [1, window) and for a text of less than two tokens.
    """
    if not 1 <= stride < window:
        raise ValueError(f"stride must be at least 1 and less than the window of {window} tokens, got {stride}")
    if len(tokens) < 2:
        raise ValueError("the text has fewer than two tokens: there is nothing to predict")
    window = min(window, len(tokens))
    batch_size = batch_size or windows_together(window)
    ends = [*range(window, len(tokens), stride), len(tokens)]
    with evaluating(model):
        # The first window predicts all its tokens but the first, the last one what is left.
        nats = _nats(model, tokens, [window], window, window - 1)
        middle = ends[1:-1]
        starts = range(0, len(middle), batch_size)
        for start in tracked(starts, "evaluating", show_progress):
            nats += _nats(model, tokens, middle[start : start + batch_size], window, stride)
        if len(ends) > 1:
            nats += _nats(model, tokens, ends[-1:], window, ends[-1] - ends[-2])
    return Evaluation.of_text(nats, np.bincount(tokens[1:]), token_bytes, routing={})


def _nats(model: Any, tokens: np.ndarray, ends: list[int], window: int, new: int) -> float:
    """Summed loss of the last `new` tokens of the windows that end there."""
    rows = np.stack([tokens[end - window : end] for end in ends]).astype(np.int64)
    ids_BT = torch.from_numpy(rows).to(model.device)
    wanted = {"logits_to_keep": new + 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    logits_BSV = model(input_ids=ids_BT, use_cache=False, **wanted).logits[:, -new - 1 : -1]
    return float(cross_entropy(logits_BSV.flatten(0, 1).float(), ids_BT[:, -new:].flatten(), reduction="sum"))
