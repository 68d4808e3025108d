"""What a finished study says: arms compared seed by seed, and where the tokens of an arm went.

An interval is the 95 % confidence interval of the mean of the differences between runs of the same seed, by Student's
t distribution.
"""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chiaroscuro.modeling import read_json
from chiaroscuro.studies.runner import Places, read_results
from chiaroscuro.studies.study import Study
from chiaroscuro.studies.table import Row, best_runs, rows

# The 97.5th percentile of Student's t for 1, 2, ... degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Finished:
    """A study all of whose runs are there: its table, and per arm the results at its best learning rate by seed."""

    study: Study
    folder: Path
    origin: dict[str, Any]
    table: dict[str, Row]
    runs: dict[str, list[dict[str, Any]]]


def finished(study: Study, folder: Path) -> Finished:
    """Raises Unfinished when runs are missing, and ValueError when results are damaged or made by another plan."""
    results = read_results(study, Places(folder, folder))
    table = {row["arm"]: row for row in rows(study, results)}
    return Finished(study, folder, read_json(folder / "study.json"), table, best_runs(study, results))


@dataclass(frozen=True)
class Difference:
    """How much an arm differs from another: the mean over seeds, and half the width of its 95 % interval.

    For language models a ratio of perplexities less one; for classifiers accuracy less accuracy. `better` and `worse`
    are clear when the interval does not reach zero.
    """

    mean: float
    half_width: float
    is_accuracy: bool

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    @property
    def better(self) -> bool:
        return self.low > 0 if self.is_accuracy else self.high < 0

    @property
    def worse(self) -> bool:
        return self.high < 0 if self.is_accuracy else self.low > 0

    def __str__(self) -> str:
        name = "points" if self.is_accuracy else "%"
        return f"{100 * self.mean:+.1f} {name} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def difference(study: Finished, arm: str, other: str, text: str | None = None) -> Difference:
    """`arm` less `other`, seed by seed, on the test split or on a further text."""
    ours, theirs = (study.table[each] if text is None else study.table[each]["texts"][text] for each in (arm, other))
    is_accuracy = "accuracy" in ours
    measure = "accuracy" if is_accuracy else "loss"
    pairs = zip(ours[measure]["values"], theirs[measure]["values"], strict=True)
    # The loss is the logarithm of the perplexity, so the exponential of a difference is a ratio of perplexities.
    differences = [mine - others if is_accuracy else math.expm1(mine - others) for mine, others in pairs]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return Difference(statistics.mean(differences), STUDENT[len(differences) - 2] * error, is_accuracy)


def final_shares(study: Finished, arm: str) -> dict[str, dict[str, list[float]]]:
    """Per layer with a choice and per operator, the share of the test tokens it got, by seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in study.runs[arm]:
        for layer, shares in result["routing"].items():
            for operator, share in shares.items():
                found.setdefault(layer, {}).setdefault(operator, []).append(share)
    return found
