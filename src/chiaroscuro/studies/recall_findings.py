"""The rules by which our claims about recall are judged: a run learns it or does not, so that they count seeds."""

import statistics

from chiaroscuro.studies.budgets import DENSE_START, ONE_LAYER, POST_NORM, RECURRING, TWIN, UPPER
from chiaroscuro.studies.evidence import Finished
from chiaroscuro.studies.findings import FAILS, HOLDS, OPEN, Finding, Studies, compared, gained, shown

APART, RECALLS = 0.02, 0.9  # accuracy that is as good, and that of a twin that can do it at all


def recall(studies: Studies) -> Finding:
    study = studies["recall"]
    post_norm = f"{POST_NORM}{TWIN}"
    arms = [arm for arm in study.table if arm not in (TWIN, post_norm)]
    table, found = compared([(study, arm, TWIN) for arm in [*arms, post_norm]])
    table = _with_seeds(table, study, [*arms, post_norm])
    *_, of_post_norm = found
    seeds = len(study.study.seeds)
    within = [f"{arm} ({_recalling(study, arm)})" for arm in arms if _recalling(study, arm)]
    return Finding(
        f"half of the layers: {_recalled(study, UPPER)}; one of six: {_recalled(study, ONE_LAYER)}; its tokens that "
        f"recur: {_recalled(study, RECURRING)}",
        [
            f"Full attention has {shown(study, TWIN)} %, with post-norm {of_post_norm} against it. Within "
            f"{100 * APART:.0f} points of it, with so many seeds of {seeds}: {', '.join(within) or 'none'}. The "
            f"recipe `chiar`, by seed: {_by_seed(study, RECURRING)} %."
        ],
        table,
    )


def _with_seeds(table: list[list[str]], study: Finished, arms: list[str]) -> list[list[str]]:
    """A table of arms with the accuracies of each by seed: where a run learns or does not, a mean says little."""
    cells = ["by seed, %", *(_by_seed(study, arm) for arm in arms)]
    return [[*row, cell] for row, cell in zip(table, cells, strict=True)]


def dense_start(studies: Studies) -> Finding:
    study, without = studies["recall"], "benefit, 12.5 %"
    started = f"{DENSE_START}{without}"
    table, (found,) = compared([(study, started, without)])
    return Finding(
        gained(found),
        [
            f"By seed: {_by_seed(study, started)} %; without a dense start {_by_seed(study, without)} %, a difference "
            f"of {found}; the medians are {_median(study, started)} and {_median(study, without)} %. "
            f"Training takes {study.table[started]['training_flops']['mean']:.3f} of full attention's "
            f"FLOPs, without a dense start {study.table[without]['training_flops']['mean']:.3f}."
        ],
        table,
    )


def _recalled(study: Finished, arm: str) -> str:
    """Whether an arm recalls as full attention does with every seed; it does not where it does with half of them at
    most. A run learns to or does not, so that means and intervals would say little."""
    seeds = len(study.study.seeds)
    if study.table[TWIN]["accuracy"]["mean"] < RECALLS:
        return OPEN
    recalling = _recalling(study, arm)
    return HOLDS if recalling == seeds else FAILS if recalling <= seeds / 2 else OPEN


def _recalling(study: Finished, arm: str) -> int:
    """With how many seeds an arm is within two points of full attention."""
    least = study.table[TWIN]["accuracy"]["mean"] - APART
    return sum(value >= least for value in study.table[arm]["accuracy"]["values"])


def _median(study: Finished, arm: str) -> str:
    """Of the seeds, in per cent."""
    return f"{100 * statistics.median(study.table[arm]['accuracy']['values']):.1f}"


def _by_seed(study: Finished, arm: str) -> str:
    """Accuracy in per cent."""
    return ", ".join(f"{100 * value:.1f}" for value in study.table[arm]["accuracy"]["values"])
