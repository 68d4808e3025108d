"""What a finished study says: arms compared over their seeds, and where the tokens of an arm went.

Three seeds of one arm say little of how much seeds scatter, and those of all arms of a study together say enough: an
interval is Student's, at 95 %, of the difference of two means over seeds with the pooled variance of the study. Arms
that scatter far more than the others have their own, and so have all that have seeds enough, or where accuracy is
measured, which scatters little near its ends and much between them.
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
NORMAL = statistics.NormalDist().inv_cdf(0.975)
ENOUGH = 6  # seeds, from which on the variance of an arm is known without the others
SCATTERS = 10.0  # times the median variance: of three seeds' variances, one in a thousand lies above


@dataclass(frozen=True)
class Finished:
    """A study all of whose runs are there: its table, per arm the results at its best learning rate by seed, and per
    arm those that its learning rate was chosen by, but for those that diverged."""

    study: Study
    folder: Path
    origin: dict[str, Any]
    table: dict[str, Row]
    runs: dict[str, list[dict[str, Any]]]
    searched: dict[str, dict[float, list[dict[str, Any]]]]


def finished(study: Study, folder: Path) -> Finished:
    """Raises Unfinished when runs are missing, and ValueError when results are damaged or made by another plan."""
    results = read_results(study, Places(folder, folder))
    table = {row["arm"]: row for row in rows(study, results)}
    searched: dict[str, dict[float, list[dict[str, Any]]]] = {arm.name: {} for arm in study.arms}
    for run in study.search():
        if "diverged" not in results[run.name]:
            searched[run.arm].setdefault(run.learning_rate, []).append(results[run.name])
    return Finished(study, folder, read_json(folder / "study.json"), table, best_runs(study, results), searched)


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

    @property
    def interval(self) -> str:
        if math.isinf(self.low):
            return "[not known]"
        return f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} {'points' if self.is_accuracy else '%'} {self.interval}"


def difference(
    study: Finished,
    pairs: list[tuple[str, str]],
    text: str | None = None,
    pooled: bool = True,
    skipped: int = 0,
) -> Difference:
    """The first arm of a pair less the second, on the test split or on a further text; of several pairs, no arm of
    which is in two of them, the mean. Of an arm with a run that diverged nothing is known: its interval has no ends.
    Without `pooled` each arm has its own variance, as accuracies and arms of enough seeds always do. The first
    `skipped` seeds are left out."""
    is_accuracy = measure_of(study.table[pairs[0][0]]) == "accuracy"
    measure = "accuracy" if is_accuracy else "loss"
    arms = [arm for pair in pairs for arm in pair]
    lacking = any("diverged" in study.table[arm] for arm in arms)
    first = 0 if lacking else skipped
    values = {arm: on_text(row, text)[measure]["values"][first:] for arm, row in study.table.items()}
    # The loss is the logarithm of the perplexity, so the exponential of a difference is a ratio of perplexities.
    scale = float if is_accuracy else math.expm1
    mean = statistics.mean(statistics.mean(values[arm]) - statistics.mean(values[other]) for arm, other in pairs)
    if lacking:
        return Difference(scale(mean), -math.inf, math.inf, is_accuracy)
    own = is_accuracy or not pooled or len(study.study.seeds) >= ENOUGH
    reach = (_own_reach if own else _pooled_reach)(values, arms) / len(pairs)
    return Difference(scale(mean), scale(mean - reach), scale(mean + reach), is_accuracy)


def _pooled_reach(values: dict[str, list[float]], arms: list[str]) -> float:
    """Half of the interval of a sum of means, by the variance of all steady arms; one that scatters has its own."""
    own = {arm: statistics.variance(each) for arm, each in values.items() if len(each) > 1}
    bound = SCATTERS * statistics.median(own.values())
    steady = [arm for arm in own if own[arm] <= bound]
    freedom = sum(len(values[arm]) - 1 for arm in steady)
    pooled = sum(own[arm] * (len(values[arm]) - 1) for arm in steady) / freedom
    scattering = [arm for arm in arms if arm in own and arm not in steady]
    error = math.sqrt(sum((own[arm] if arm in scattering else pooled) / len(values[arm]) for arm in arms))
    return _student(min([freedom, *(len(values[arm]) - 1 for arm in scattering)])) * error


def _own_reach(values: dict[str, list[float]], arms: list[str]) -> float:
    """The same by the variance of each arm (B. L. Welch, 1947), degrees of freedom cut to a whole number: rather too
    wide than too narrow."""
    parts = [(statistics.variance(values[arm]) / len(values[arm]), len(values[arm]) - 1) for arm in arms]
    total = sum(part for part, _ in parts)
    if total == 0.0:
        return 0.0
    freedom = total**2 / sum(part**2 / freedom for part, freedom in parts)
    return _student(int(freedom)) * math.sqrt(total)


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
