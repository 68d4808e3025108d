"""What is found on a claim: a verdict, its reasons and a table, by rules that know only arms and their intervals.

What is better or worse is so by an interval that does not reach zero, what is as good by one that lies within a margin;
all else is not settled.
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


def gained(found: Difference, wanted_better: bool = True) -> str:
    """The verdict on a claim that an arm is better, or that it is worse."""
    if found.better:
        return HOLDS if wanted_better else FAILS
    if found.worse:
        return FAILS if wanted_better else HOLDS
    return OPEN


def worth(found: Difference, least: float) -> str:
    """The verdict on a claim that an arm is better, which fails where it is better by less than `least` at the best."""
    unlikely = (found.high if found.is_accuracy else -found.low) < least
    return FAILS if unlikely else gained(found)


def in_both(pre: Difference, post: Difference) -> str:
    """The verdict on a gain in both bodies."""
    verdicts = gained(pre), gained(post)
    return verdicts[0] if verdicts[0] == verdicts[1] else f"{verdicts[0]} with pre-norm; {verdicts[1]} with post-norm"


def as_good(found: list[Difference], margin: float) -> str:
    """Whether each is worse by no more than a margin."""
    within = [each.within(margin) for each in found]
    return FAILS if False in within else OPEN if None in within else HOLDS
