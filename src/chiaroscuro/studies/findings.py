"""What is found on a claim: a verdict, its reasons and a table, by rules that know only arms and their intervals.

What is better or worse is so by an interval that does not reach zero, what is as good by one that lies within a margin;
all else is not settled. What is so, but not by as much as was claimed, holds in direction only.
"""

from dataclasses import dataclass

from chiaroscuro.studies.evidence import Difference, Finished, difference
from chiaroscuro.studies.table import measure_of, on_text

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
    """A table of arms against others, on the test split or on a further text, and the differences in it. Of perplexity
    also the interval by the variances of the two arms alone."""
    measure = measure_of(pairs[0][0].table[pairs[0][1]])
    table = [["study", "arm", measure, "against", measure, "difference"]]
    table[0] += ["by their own variances"] if measure == "perplexity" else []
    differences = []
    for study, arm, other in pairs:
        differences.append(difference(study, [(arm, other)], text))
        row = [study.study.name, arm, shown(study, arm, text), other, shown(study, other, text), str(differences[-1])]
        if measure == "perplexity":
            row.append(difference(study, [(arm, other)], text, pooled=False).interval)
        table.append(row)
    return table, differences


def shown(study: Finished, arm: str, text: str | None = None) -> str:
    """What an arm reaches, accuracy in per cent, with its deviation over seeds."""
    row = on_text(study.table[arm], text)
    measure = measure_of(row)
    scale = 100 if measure == "accuracy" else 1
    return f"{scale * row[measure]['mean']:.2f} ± {scale * row[measure]['deviation']:.2f}"


def gained(found: Difference) -> str:
    """The verdict on a claim that an arm is better."""
    return HOLDS if found.better else FAILS if found.worse else OPEN


def sized(found: Difference, claimed: float) -> str:
    """The verdict on a claim that an arm differs by `claimed`, one way or the other, or by more."""
    low, high = (found.low, found.high) if claimed > 0 else (-found.high, -found.low)
    if low > 0:
        return HOLDS if high >= abs(claimed) else WEAKER
    return FAILS if high < 0 else OPEN


def worth(found: Difference, least: float) -> str:
    """The verdict on a claim that an arm is better by `least`, which fails where that cannot be."""
    claimed = least if found.is_accuracy else -least
    unlikely = not found.better and (found.high < claimed if found.is_accuracy else found.low > claimed)
    return FAILS if unlikely else sized(found, claimed)


def in_both(pre: Difference, post: Difference) -> str:
    """The verdict on a gain in both bodies."""
    verdicts = gained(pre), gained(post)
    return verdicts[0] if verdicts[0] == verdicts[1] else f"{verdicts[0]} with pre-norm; {verdicts[1]} with post-norm"


def as_good(found: list[Difference], margin: float) -> str:
    """Whether each is worse by no more than a margin."""
    within = [each.within(margin) for each in found]
    return FAILS if False in within else OPEN if None in within else HOLDS
