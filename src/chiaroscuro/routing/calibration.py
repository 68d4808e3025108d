"""Thresholds and bandwidths from data.

The paper takes the 33rd and 67th percentile of the entropy of validation-text token embeddings. Here each router has
its own thresholds and takes the percentiles of the entropies it is itself given, because these differ between layers
and move during training.

Shapes: B batch, T tokens, D model channels.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chiaroscuro.mixers import Mixer
from chiaroscuro.ops import noise_entropy
from chiaroscuro.ops.checks import require_finite
from chiaroscuro.ops.evaluating import evaluating

ROUNDING = 8 * torch.finfo(torch.float32).eps  # of a score, from the order in which sums are taken


@dataclass(frozen=True)
class Calibration:
    """What one router was set to: its thresholds, and the mean and standard deviation of the scores it saw, which for
    the threshold router are entropies."""

    layer: int
    low: float
    high: float
    mean: float
    deviation: float


def noise_thresholds(D: int) -> tuple[float, float]:
    """Where the thresholds start before calibration: the 33rd and 67th percentile of the entropy of D white-noise
    channels, by the normal approximation with deviation 1 / (sqrt(D) ln D). The published thresholds, 0.855 and 0.865
    at D = 256 and 0.8935 and 0.8973 at D = 1024, lie there too."""
    spread = 0.43 / (math.sqrt(D) * math.log(D))
    mean = noise_entropy(D)
    return max(0.0, mean - spread), min(1.0, mean + spread)


def between(score_N: Tensor, below: float) -> float:
    """A threshold with a part `below` of the N scores under it, halfway between two neighbours: where the tokens that
    are too many or too few, and those that rounding may move to the other side, are fewest together. So equal scores
    stay together; where no layer before it mixes tokens, a router gives a token the same score wherever it stands.

    Raises NotFinite for NaN or infinity among the scores, and ValueError when there are none.
    """
    if not len(score_N):
        raise ValueError("no scores to put a threshold between")
    require_finite("the score of a router", score_N)
    score_N = score_N.double().sort().values
    beyond = score_N[-1] - score_N[0] + 1
    edges = torch.cat((score_N[:1] - beyond, score_N, score_N[-1:] + beyond))
    places = (edges[:-1] + edges[1:]) / 2
    moved = score_N.abs().max() * ROUNDING
    unsure = torch.searchsorted(score_N, places + moved) - torch.searchsorted(score_N, places - moved)
    amiss = (torch.arange(len(places), device=score_N.device) - below * len(score_N)).abs()
    return float(places[(amiss + unsure).argmin()])


def calibrate(model: nn.Module, input_ids_BT: Tensor, fit_mixers: bool = False) -> list[Calibration]:
    """Set the thresholds of every threshold router to its quantiles of what it sees on `input_ids_BT`, as `between`
    takes them: the 33rd and 67th percentile, or what leaves its share above them.

    One forward pass does all layers: a router's thresholds are set before it decides, so each layer sees the input
        that the calibrated layers below it produce. `input_ids_BT` should be held-out text without padding, at least
        some thousand tokens. With `fit_mixers` the mixers also take what starts from data, such as the bandwidth of
        the RBF kernel. The model is run in evaluation mode and left in the mode it was in.
    """
    found: list[Calibration] = []

    def set_thresholds(router: Any, args: tuple[Tensor, ...]) -> None:
        score = router.score(*args[:2]).flatten().double()
        low, high = (between(score, quantile) for quantile in router.quantiles)
        router.set_thresholds(low, high)
        found.append(Calibration(router.layer, low, high, float(score.mean()), float(score.std(correction=0))))

    def fit(mixer: Any, args: tuple[Tensor, ...]) -> None:
        mixer.fit(args[0])

    hooks = [m.register_forward_pre_hook(set_thresholds) for m in model.modules() if hasattr(m, "set_thresholds")]
    if fit_mixers:
        hooks += [m.register_forward_pre_hook(fit) for m in model.modules() if isinstance(m, Mixer)]
    try:
        with evaluating(model):
            model(input_ids_BT)
    finally:
        for hook in hooks:
            hook.remove()
    return found
