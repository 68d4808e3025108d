"""Which tokens get attention, and is it those that need it?

For each layer with a choice between a cheap operator and attention, every token of a held-out sample is measured: its
spectral entropy before and after training, where the router sends it, its loss (of the prediction made at it), and the
benefit that attention brings it. The benefit is found by intervention: the layer's choices are replaced by random ones
at half of the tokens, and by their complement; a token's loss without attention less its loss with it, averaged over
many such pairs, is what attention at that token is worth while half of the others have it too.

Shapes: B windows, T tokens of a window, P pairs of interventions.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from chiaroscuro.analysis.words import CLASSES, word_classes
from chiaroscuro.modeling import ChiarForCausalLM
from chiaroscuro.modeling.layer import ChiarLayer
from chiaroscuro.ops import noise_entropy
from chiaroscuro.routing import calibrate, forced, recency

BINS = np.linspace(0.0, 1.0, 201)
FREQUENCY_BANDS = 5
RESAMPLES = 200
RIDGE = 10.0  # against fitting noise where there are few tokens


@dataclass(frozen=True)
class Sample:
    """Windows of held-out text: ids (B, T), and per token its word class and how often it occurs in the training text.

    The last token of each window is left out of all figures: the prediction made at it cannot be judged.
    """

    ids_BT: Tensor
    classes: np.ndarray
    counts: np.ndarray


def sample(windows: Tensor, tokenizer: PreTrainedTokenizerFast, train: np.ndarray) -> Sample:
    """What is known of the tokens of `windows` (B, T) without a model."""
    rows = [word_classes([str(tokenizer.decode([index])) for index in row]) for row in windows.tolist()]
    occurrences = np.bincount(train, minlength=len(tokenizer))
    return Sample(windows, np.array(rows)[:, :-1], occurrences[windows[:, :-1].numpy()])


def study_tokens(
    trained: ChiarForCausalLM,
    untrained: ChiarForCausalLM,
    text: Sample,
    calibration_BT: Tensor,
    pairs: int = 8,
    seed: int = 0,
    progress: Callable[[Iterable[ChiarLayer]], Iterable[ChiarLayer]] = iter,
) -> dict[str, Any]:
    """The figures of every layer of `trained` that chooses between two operators, the second of them attention.

    `untrained` is the model before training; its thresholds are set on `calibration_BT`. Raises ValueError when the
    model has no such layer.
    """
    layers = [layer for layer in trained.model.layers if _has_choice(layer)]
    if not layers:
        raise ValueError("no layer of this model chooses between an operator and attention: nothing to study")
    if len(text.ids_BT) < 2:
        raise ValueError("one window of text is no sample: give two at least")
    calibrate(untrained, calibration_BT, fit_mixers=True)
    before, after = _entropies(untrained, text.ids_BT), _entropies(trained, text.ids_BT)
    loss = _losses(trained, text.ids_BT)
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in progress(layers):
        benefit_PBT = _benefits(trained, layer, text.ids_BT, pairs, generator)
        figures = _layer_figures(text, before[layer.index][0], *after[layer.index], loss, benefit_PBT)
        figures["benefit"] |= _by_recurrence(text.ids_BT, benefit_PBT.mean(0))
        share = float(after[layer.index][1].mean())
        figures["benefit"]["linear"] = _picked_linearly(_given(trained, layer, text.ids_BT), benefit_PBT.mean(0), share)
        found[str(layer.index)] = figures
    return {
        "tokens": int(loss.size),
        "pairs": pairs,
        "noise_entropy": noise_entropy(trained.config.hidden_size),
        "bins": BINS.tolist(),
        "layers": found,
    }


def _has_choice(layer: Any) -> bool:
    return len(layer.mixer.operators) == 2 and layer.mixer.operators[1] == "attention"


@torch.no_grad()
def _entropies(model: ChiarForCausalLM, ids_BT: Tensor) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Per layer the entropy and the choice of each token but the last of each window."""
    traces = model.model(ids_BT, use_cache=False, output_routing=True).routing
    return {trace.layer: (trace.entropy[:, :-1].numpy(), trace.choice[:, :-1].numpy()) for trace in traces}


@torch.no_grad()
def _given(model: ChiarForCausalLM, layer: ChiarLayer, ids_BT: Tensor) -> np.ndarray:
    """What the router of a layer is given for each token but the last of its window, (B, T - 1, D)."""
    seen: list[Tensor] = []
    with layer.mixer.register_forward_pre_hook(lambda mixer, args: seen.append(args[0])):
        model.model(ids_BT, use_cache=False)
    return seen[0][:, :-1].double().numpy()


@torch.no_grad()
def _losses(model: ChiarForCausalLM, ids_BT: Tensor) -> np.ndarray:
    """Nats of the prediction made at each token but the last of its window."""
    hidden_BTD = model.model(ids_BT, use_cache=False).last_hidden_state
    # Logits of one window at a time: those of all would fill the memory.
    rows = zip(hidden_BTD[:, :-1], ids_BT[:, 1:], strict=True)
    return torch.stack([cross_entropy(model.lm_head(h_TD), ids_T, reduction="none") for h_TD, ids_T in rows]).numpy()


def _benefits(
    model: ChiarForCausalLM, layer: ChiarLayer, ids_BT: Tensor, pairs: int, generator: torch.Generator
) -> np.ndarray:
    """Per pair of interventions, each token's loss without attention less its loss with it."""
    benefits = []
    assert layer.mixer.router is not None
    for _ in range(pairs):
        choice_BT = torch.randint(2, ids_BT.shape, generator=generator)
        losses = []
        for chosen_BT in (choice_BT, 1 - choice_BT):
            with forced(layer.mixer.router, chosen_BT):
                losses.append(_losses(model, ids_BT))
        with_attention_first = choice_BT[:, :-1].numpy() == 1
        benefits.append(np.where(with_attention_first, losses[1] - losses[0], losses[0] - losses[1]))
    return np.stack(benefits)


def _layer_figures(
    text: Sample, before: np.ndarray, after: np.ndarray, choice: np.ndarray, loss: np.ndarray, benefit_PBT: np.ndarray
) -> dict[str, Any]:
    benefit = benefit_PBT.mean(0)
    frequency = np.log(1 + text.counts)
    measured = {"entropy_before": before, "entropy": after, "attention": choice, "loss": loss, "benefit": benefit}
    bands = np.quantile(text.counts, np.linspace(0, 1, FREQUENCY_BANDS + 1)[1:-1])
    band = np.searchsorted(bands, text.counts)
    return {
        "histogram_before": np.histogram(before, BINS)[0].tolist(),
        "histogram": np.histogram(after, BINS)[0].tolist(),
        "by_class": _grouped(measured, text.classes, CLASSES),
        "by_frequency": _grouped(measured, band, range(FREQUENCY_BANDS)),
        "rank_correlation": {
            "entropy, frequency": _correlation(after, frequency),
            "entropy, loss": _correlation(after, loss),
            "entropy, benefit": _correlation(after, benefit),
            "loss, benefit": _correlation(loss, benefit),
            "frequency, benefit": _correlation(frequency, benefit),
        },
        "benefit": {
            "all": _mean(benefit),
            "routed": _mean(np.where(choice == 1, benefit, np.nan)),
            "not_routed": _mean(np.where(choice == 0, benefit, np.nan)),
            "best": _best(benefit_PBT, float(choice.mean())),
        },
    }


def _grouped(measured: dict[str, np.ndarray], group: np.ndarray, names: Iterable[Any]) -> dict[str, dict[str, float]]:
    """Count and means of the tokens of each group."""
    masks = {str(name): group == name for name in names}
    return {
        name: {"tokens": int(mask.sum())} | {key: float(values[mask].mean()) for key, values in measured.items()}
        for name, mask in masks.items()
        if mask.any()
    }


def _by_recurrence(ids_BT: Tensor, benefit_BT: np.ndarray) -> dict[str, dict[str, float | None]]:
    """The mean benefit of the tokens that occurred before in their window, and of those that did not."""
    recur_BT = (recency(ids_BT) > 0)[:, :-1].numpy()
    return {
        "recurring": _mean(np.where(recur_BT, benefit_BT, np.nan)),
        "new": _mean(np.where(recur_BT, np.nan, benefit_BT)),
    }


def _best(benefit_PBT: np.ndarray, share: float) -> dict[str, float | None]:
    """The mean benefit of the tokens, as many as the router sends, that attention helps most.

    They are picked by one half of the pairs and judged by the other, since those picked by luck do not help again.
    """
    half = len(benefit_PBT) // 2
    picks, judged = benefit_PBT[:half].mean(0), benefit_PBT[half:].mean(0)
    return _mean(np.where(picks > np.quantile(picks, 1 - share), judged, np.nan))


def _picked_linearly(x_BTD: np.ndarray, benefit_BT: np.ndarray, share: float) -> dict[str, float | None]:
    """The mean benefit of the tokens that a linear score picks, as many as the router sends: what a router that is no
    more than that could find.

    The score is fitted by least squares on every second window and judged by the others, both ways.
    """
    x_BTD = np.concatenate((x_BTD, np.ones((*x_BTD.shape[:2], 1))), axis=-1)
    picked_BT = np.zeros(benefit_BT.shape, dtype=bool)
    for fitted, judged in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        rows, gains = x_BTD[fitted].reshape(-1, x_BTD.shape[-1]), benefit_BT[fitted].ravel()
        weights = np.linalg.solve(rows.T @ rows + RIDGE * np.eye(rows.shape[1]), rows.T @ gains)
        score_BT = x_BTD[judged] @ weights
        picked_BT[judged] = score_BT > np.quantile(score_BT, 1 - share)
    return _mean(np.where(picked_BT, benefit_BT, np.nan))


def _mean(values_BT: np.ndarray) -> dict[str, float | None]:
    """The mean of what is not NaN, and its standard error over windows."""

    def mean(rows: np.ndarray) -> float:
        kept = values_BT[rows][~np.isnan(values_BT[rows])]
        return float(kept.mean()) if kept.size else math.nan

    return _resampled(mean, len(values_BT))


def _correlation(a_BT: np.ndarray, b_BT: np.ndarray) -> dict[str, float | None]:
    """Spearman's rank correlation, and its standard error over windows."""
    a, b = (_ranks(values) for values in (a_BT, b_BT))
    return _resampled(lambda rows: float(np.corrcoef(a[rows].ravel(), b[rows].ravel())[0, 1]), len(a))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return ((last - (counts + 1) / 2)[index]).reshape(values.shape)


def _resampled(figure: Callable[[np.ndarray], float], windows: int) -> dict[str, float | None]:
    """A figure of the windows, and its standard deviation over samples of as many of them with replacement; None for
    both where there is no such figure, as of the tokens that go nowhere."""
    random = np.random.default_rng(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = figure(np.arange(windows))
        if math.isnan(value):
            return {"value": None, "error": None}
        others = [figure(random.integers(windows, size=windows)) for _ in range(RESAMPLES)]
    return {"value": value, "error": float(np.nanstd(others))}
