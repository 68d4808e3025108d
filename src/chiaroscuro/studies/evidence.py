"""What a finished study says: arms compared over their seeds, and where the tokens of an arm went.

Three seeds of one arm say little of how much seeds scatter, and those of all arms of a study together say enough: an
interval is Student's, at 95 %, of the difference of two means over seeds with the pooled variance of the study. Arms
that scatter far more than the others have their own. Runs of the same seed are not taken as pairs, since they turned
out to have nothing in common.
"""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chiaroscuro.modeling import read_json
from chiaroscuro.studies.runner import Places, read_results
from chiaroscuro.studies.study import Study
from chiaroscuro.studies.table import Row, best_runs, measure_of, on_text, rows

# The 97.5th percentile of Student's t for 1, 2, ... degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
NORMAL = 1.95996  # the same of the normal distribution
SCATTERS = 10.0  # times the variance of the other arms: of F(2, 20), the thousandth that lies above


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
    """How much an arm differs from another, and the ends of the 95 % interval.

    For language models a ratio of perplexities less one; for classifiers accuracy less accuracy. `better` and `worse`
    are clear when the interval does not reach zero.
    """

    mean: float
    low: float
    high: float
    is_accuracy: bool

    @property
    def better(self) -> bool:
        return self.low > 0 if self.is_accuracy else self.high < 0

    @property
    def worse(self) -> bool:
        return self.high < 0 if self.is_accuracy else self.low > 0

    def within(self, margin: float) -> bool | None:
        """Whether the arm is worse by no more than `margin`; None where the interval holds both."""
        best, worst = (-self.high, -self.low) if self.is_accuracy else (self.low, self.high)
        return True if worst <= margin else False if best > margin else None

    def __str__(self) -> str:
        name = "points" if self.is_accuracy else "%"
        return f"{100 * self.mean:+.1f} {name} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def difference(study: Finished, pairs: list[tuple[str, str]], text: str | None = None) -> Difference:
    """The first arm of a pair less the second, on the test split or on a further text; of several pairs, no arm of
    which is in two of them, the mean. Of an arm with a run that diverged nothing is known: its interval has no ends."""
    is_accuracy = measure_of(study.table[pairs[0][0]]) == "accuracy"
    measure = "accuracy" if is_accuracy else "loss"
    values = {arm: on_text(row, text)[measure]["values"] for arm, row in study.table.items()}
    variances = _variances(values)
    arms = [arm for pair in pairs for arm in pair]
    # The loss is the logarithm of the perplexity, so the exponential of a difference is a ratio of perplexities.
    scale = float if is_accuracy else math.expm1
    mean = statistics.mean(statistics.mean(values[arm]) - statistics.mean(values[other]) for arm, other in pairs)
    if any("diverged" in study.table[arm] for arm in arms):
        return Difference(scale(mean), -math.inf, math.inf, is_accuracy)
    error = math.sqrt(sum(variances[arm][0] / len(values[arm]) for arm in arms)) / len(pairs)
    reach = _student(min(variances[arm][1] for arm in arms)) * error
    return Difference(scale(mean), scale(mean - reach), scale(mean + reach), is_accuracy)


def _variances(values: dict[str, list[float]]) -> dict[str, tuple[float, int]]:
    """Per arm the variance over seeds and its degrees of freedom, pooled but for the arms that scatter."""
    own = {arm: (statistics.variance(each), len(each) - 1) for arm, each in values.items() if len(each) > 1}
    steady = sorted(own, key=lambda arm: own[arm][0])
    while len(steady) > 2 and own[steady[-1]][0] > SCATTERS * _pooled(own, steady[:-1])[0]:
        steady.pop()
    pooled = _pooled(own, steady)
    return dict.fromkeys(values, pooled) | {arm: own[arm] for arm in own if arm not in steady}


def _pooled(own: dict[str, tuple[float, int]], arms: list[str]) -> tuple[float, int]:
    freedom = sum(own[arm][1] for arm in arms)
    return sum(own[arm][0] * own[arm][1] for arm in arms) / freedom, freedom


def _student(freedom: int) -> float:
    """The 97.5th percentile; beyond the table by its expansion about the normal distribution's."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = NORMAL
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return sum(term / freedom**power for power, term in enumerate(terms))


def final_shares(study: Finished, arm: str) -> dict[str, dict[str, list[float]]]:
    """Per layer with a choice and per operator, the share of the test tokens it got, by seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in study.runs[arm]:
        for layer, shares in result["routing"].items():
            for operator, share in shares.items():
                found.setdefault(layer, {}).setdefault(operator, []).append(share)
    return found
