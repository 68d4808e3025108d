"""What is found on a claim: a verdict, its reasons and a table, by rules that know only arms and their intervals.

What is better or worse is so by an interval that does not reach zero, what is as good by one that lies within a margin;
all else is not settled. What is so, but not by as much as was claimed, holds in direction only; a claim of a size fails
where the interval does not reach that size and does not lie wholly on its side of zero.
"""

import statistics
from dataclasses import dataclass

from chiaroscuro.studies.evidence import Difference, Finished, difference
from chiaroscuro.studies.table import failures, measure_of, on_text

HOLDS, FAILS, WEAKER, OPEN = "holds", "fails", "holds in direction, not in size", "not settled"

Studies = dict[str, Finished]


@dataclass(frozen=True)
class Finding:
    """The verdict, the sentences that give its reasons, and the lines of a table."""

    verdict: str
    reasons: list[str]
    table: list[list[str]]


def compared(
    pairs: list[tuple[Finished, str, str]], text: str | None = None
) -> tuple[list[list[str]], list[Difference]]:
    """A table of arms against others, on the test split or on a further text, with the parameters of the one divided by
    those of the other, and the differences in it. Also the interval by the variances of the two arms alone, where that
    is another one."""
    measures = [measure_of(study.table[arm]) for study, arm, _ in pairs]
    named = measures[0] if len(set(measures)) == 1 else "result"
    table = [["study", "arm", named, "against", named, "parameters", "difference"]]
    differences = [difference(study, [(arm, other)], text) for study, arm, other in pairs]
    for (study, arm, other), found in zip(pairs, differences, strict=True):
        size = f"{study.table[arm]['parameters'] / study.table[other]['parameters']:.2f}"
        cells = [arm, shown(study, arm, text), other, shown(study, other, text), size, str(found)]
        table.append([study.study.name, *cells])
    if "perplexity" in measures:
        own = [difference(study, [(arm, other)], text, pooled=False) for study, arm, other in pairs]
        others = ("" if each == found else each.interval for each, found in zip(own, differences, strict=True))
        last = ["by their own variances", *others]
        table = [[*row, cell] for row, cell in zip(table, last, strict=True)]
    return table, differences


def shown(study: Finished, arm: str, text: str | None = None) -> str:
    """What an arm reaches, accuracy in per cent, with its deviation over seeds, and how many of its runs failed."""
    row = on_text(study.table[arm], text)
    measure = measure_of(row)
    scale = 100 if measure == "accuracy" else 1
    spread = f"{scale * row[measure]['mean']:.2f} ± {scale * row[measure]['deviation']:.2f}"
    return spread + failures(study.table[arm])


def by_rate(study: Finished, arm: str) -> str:
    """The mean test perplexity of an arm at each of the learning rates that it was tried at."""
    means = {rate: statistics.mean(each["perplexity"] for each in runs) for rate, runs in study.searched[arm].items()}
    return ", ".join(f"{mean:.1f} at {rate:g}" for rate, mean in means.items())


def gained(found: Difference) -> str:
    """The verdict on a claim that an arm is better."""
    return HOLDS if found.better else FAILS if found.worse else OPEN


def sized(found: Difference, claimed: float) -> str:
    """The verdict on a claim that an arm differs by `claimed`, one way or the other, or by more."""
    low, high = (found.low, found.high) if claimed > 0 else (-found.high, -found.low)
    reached = high >= abs(claimed)
    if low > 0:
        return HOLDS if reached else WEAKER
    return OPEN if reached else FAILS


def in_both(pre: Difference, post: Difference) -> str:
    """The verdict on a gain in both bodies."""
    verdicts = gained(pre), gained(post)
    return verdicts[0] if verdicts[0] == verdicts[1] else f"{verdicts[0]} with pre-norm; {verdicts[1]} with post-norm"


def as_good(found: list[Difference], margin: float) -> str:
    """Whether each is worse by no more than a margin."""
    within = [each.within(margin) for each in found]
    return FAILS if False in within else OPEN if None in within else HOLDS
