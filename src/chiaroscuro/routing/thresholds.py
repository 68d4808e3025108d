"""Where a score is parted: what thresholds may be, where they lie before there is data, and where among scores.

Shapes: N scores.
"""

import torch
from torch import Tensor

from chiaroscuro.ops import noise_deviation, noise_entropy
from chiaroscuro.ops.accelerator import most_precise
from chiaroscuro.ops.checks import NotFinite

ROUNDING = 8 * torch.finfo(torch.float32).eps  # of a score, from the order in which sums are taken


def noise_thresholds(D: int) -> tuple[float, float]:
    """Where the thresholds start before calibration: the 33rd and 67th percentile of the entropy of D white-noise
    channels, by the normal approximation. The published thresholds, 0.855 and 0.865 at D = 256 and 0.8935 and 0.8973
    at D = 1024, lie within 1.4 deviations of the mean."""
    spread, mean = 0.43 * noise_deviation(D), noise_entropy(D)
    return max(0.0, mean - spread), min(1.0, mean + spread)


def between(score_N: Tensor, below: float) -> float:
    """A threshold with a part `below` of the N scores under it, halfway between two neighbours: where the tokens that
    are too many or too few, and those that rounding may move to the other side, are fewest together. So equal scores
    stay together; where no layer before it mixes tokens, a router gives a token the same score wherever it stands.

    Raises NotFinite for NaN or infinity among the scores, and ValueError when there are none.
    """
    if not len(score_N):
        raise ValueError("no scores to put a threshold between")
    if not torch.isfinite(score_N).all():  # on any device: what follows waits for it anyway
        raise NotFinite("the score of a router: NaN or infinity came in; look for the step before it that diverged")
    score_N = score_N.to(most_precise(score_N.device)).sort().values
    beyond = score_N[-1] - score_N[0] + 1
    edges = torch.cat((score_N[:1] - beyond, score_N, score_N[-1:] + beyond))
    places = (edges[:-1] + edges[1:]) / 2
    moved = score_N.abs().max() * ROUNDING
    unsure = torch.searchsorted(score_N, places + moved) - torch.searchsorted(score_N, places - moved)
    amiss = (torch.arange(len(places), device=score_N.device) - below * len(score_N)).abs()
    return float(places[(amiss + unsure).argmin()])


def check_share(share: float) -> None:
    """Raises ValueError unless 0 <= share <= 1."""
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0.0 <= share <= 1.0:
        raise ValueError(f"share must lie in [0, 1], got {share!r}")


def check_thresholds(low: float, high: float) -> None:
    """Raises ValueError unless low <= high. Values beyond all scores are allowed: they send every token one way."""
    if not low <= high:
        raise ValueError(f"thresholds must satisfy tau_low <= tau_high, got {low} and {high}")
