"""The page of results: every claim with its numbers and its verdict, every number from a file below `results/`."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from chiaroscuro.modeling import ChiarConfig, read_json
from chiaroscuro.studies.claims import CLAIMS, Claim
from chiaroscuro.studies.clock import clock
from chiaroscuro.studies.evidence import Finished, finished
from chiaroscuro.studies.figures import draw
from chiaroscuro.studies.findings import Finding
from chiaroscuro.studies.runner import Places, Unfinished, read_results
from chiaroscuro.studies.study import Study
from chiaroscuro.studies.table import Row, markdown, page_table, rows, with_error
from chiaroscuro.training import write_json

HEAD = """# What holds

Made by `chiaroscuro report` from the files under `results/`; do not edit. Verdicts follow from the numbers by rules
written in `src/chiaroscuro/studies/*findings.py`. Perplexity and accuracy are those of the test split, mean ± standard
deviation over seeds, each arm at the best of the learning rates that it was tried at, chosen on the validation split,
with the first seed where nothing else is said. "Not settled": the interval includes both answers.

Differences of perplexity are in per cent (lower is better), of accuracy in points, with 95 % intervals over seeds; the
error of the test text itself is not in them, and they are not corrected for their number. For perplexity the interval
is from the variance over seeds of all arms of a study, but that an arm of more than ten times the median variance has
its own; the last column has the one from the variances of the two arms alone. Accuracies, and arms with six seeds, have
that of the two arms alone only. Under "parameters" are those of the first arm divided by those of the second: routed
models have no projections where no token of a layer attends.
"""


def report(studies: Sequence[Study], results: Path, page: Path) -> str:
    """The text of `page`, with links to the files of `results`, and what its NOTES.md says of all of them. What is
    missing or not finished is named.

    Raises ValueError when there is no such folder, and when results are damaged or made by another plan.
    """
    if not results.is_dir():
        raise ValueError(f"no results at {results}")
    done: dict[str, Finished] = {}
    lacking: dict[str, str] = {}  # per unfinished study, what it lacks
    for study in studies:
        try:
            done[study.name] = finished(study, results / study.name)
        except Unfinished as error:
            lacking[study.name] = str(error)
    to_results = Path(os.path.relpath(results, page.parent))
    to_run = {name: _to_run(name, lack, results) for name, lack in lacking.items()}
    notes = results / "NOTES.md"
    found = [None if claim.missing(done) else claim.find(done) for claim in CLAIMS]
    parts = [HEAD, *([notes.read_text(encoding="utf-8")] if notes.exists() else []), _summary(done, found)]
    parts += (
        _section(number, claim, finding, done, to_run)
        for number, (claim, finding) in enumerate(zip(CLAIMS, found, strict=True), 1)
    )
    token_studies = sorted(results.glob("tokens/*/tokens.json"))
    parts += [_tokens(path, to_results / "tokens" / path.parent.name) for path in token_studies]
    parts += [clock(results / "bench", to_results / "bench"), _studies(done, to_results)]
    return "\n".join(parts)


def render(study: Study, results: dict[str, dict[str, Any]], folder: Path) -> list[Row]:
    """Write the table of a finished study into `folder`, for readers and for programs, and its figures. Returns it."""
    table = rows(study, results)
    draw(study, results, table, folder / "figures")
    write_json(folder / "table.json", {"rows": table})
    (folder / "table.md").write_text(markdown(study, table), encoding="utf-8")
    return table


def render_finished(studies: Sequence[Study], results: Path) -> None:
    """`render` for every study all of whose runs are below `results`."""
    for study in studies:
        folder = results / study.name
        with suppress(Unfinished):
            render(study, read_results(study, Places(folder, folder)), folder)


def _summary(done: dict[str, Finished], found: list[Finding | None]) -> str:
    lines = [["", "claim", "verdict"]]
    for number, (claim, finding) in enumerate(zip(CLAIMS, found, strict=True), 1):
        to_come = claim.still_to_come(done)
        verdict = finding.verdict if finding else f"not finished: {_named(claim.missing(done))}"
        to_run = f" ({_named(to_come)} still to be run)" if to_come and finding else ""
        lines.append([str(number), claim.title, verdict + to_run])
    return page_table(lines)


def _named(studies: Sequence[str]) -> str:
    return f"{'study' if len(studies) == 1 else 'studies'} {', '.join(f'`{name}`' for name in studies)}"


def _to_run(name: str, lack: str, results: Path) -> str:
    """What a study lacks, and what goes on with it, by the code that made the runs that are there."""
    begun = results / name / "study.json"
    at = f" at commit {read_json(begun).get('commit', 'unknown')}" if begun.exists() else ""
    return f"`chiaroscuro study {name}`{at} ({lack})"


def _section(
    number: int, claim: Claim, finding: Finding | None, done: dict[str, Finished], to_run: dict[str, str]
) -> str:
    lines = [f"## {number}. {claim.title}", "", f"**Claimed.** {claim.claimed}", "", f"**Tested.** {claim.tested}", ""]
    missing, to_come = claim.missing(done), claim.still_to_come(done)
    runs = ", ".join(to_run.get(name, f"`chiaroscuro study {name}`") for name in missing + to_come)
    if finding is None:
        return "\n".join([*lines, f"**Not finished.** To be run: {runs}.", ""])
    lines += [f"**Verdict: {finding.verdict}.** {' '.join(finding.reasons)}", "", page_table(finding.table)]
    lines += [f"**Still to be run.** {runs}.", ""] if to_come else []
    return "\n".join([*lines, f"**What would change it.** {claim.changes}", ""])


def _tokens(path: Path, folder: Path) -> str:
    """Which tokens of one trained model get attention."""
    found = read_json(path)
    run, made = found["run"], found["versions"]
    router = ChiarConfig.from_recipe(run["recipe"], **run["plan"]["fields"]).router
    lines = [
        f"## Which tokens get attention: {path.parent.name}",
        "",
        f"{found['tokens']:,} tokens of test text; recipe `{run['recipe']}`, router `{router}`, seed {run['seed']} "
        f"({folder / path.name}, `{made['command']}`, commit {made['commit']}). The benefit of attention at a token is "
        f"its loss without less its loss with it, averaged over {found['pairs']} pairs of random choices and their "
        "complements at all tokens of the layer; the model was trained with its own router's choices and is used to "
        "them. Errors are over windows of text.",
        "",
        f"![Entropies before and after training, and what word classes get]({folder / 'tokens.png'})",
        "",
    ]
    rows = {
        "all": "mean benefit, nats",
        "routed": "routed to attention",
        "not_routed": "routed away",
        "best": "as many tokens, picked by benefit",
        "linear": "as many, picked by a linear score fitted on other windows",
        "recurring": "tokens that occurred before in their window",
        "new": "tokens that did not",
    }
    head = ["layer", *(rows[name] for name in next(iter(found["layers"].values()))["benefit"])]
    head += [f"rank correlation: {pair}" for pair in next(iter(found["layers"].values()))["rank_correlation"]]
    table = [head]
    for layer, figures in found["layers"].items():
        values = [*figures["benefit"].values(), *figures["rank_correlation"].values()]
        table.append([str(int(layer) + 1), *(with_error(value, 3) for value in values)])
    return "\n".join([*lines, page_table([list(column) for column in zip(*table, strict=True)])])


def _as_given(study: Finished) -> str:
    """What its data were called where the runs were made, if that is not as it is declared."""
    given = sorted({result["data"] for results in study.runs.values() for result in results} - {study.study.plan.data})
    return f" (given as {', '.join(given)})" if given else ""


def _made_at(study: Finished, runs: list[dict[str, Any]]) -> str:
    """The commits of the runs, that of the study first."""
    commits = [study.origin.get("commit", "unknown"), *sorted({result["versions"]["commit"] for result in runs})]
    commits = list(dict.fromkeys(commits))
    return f"{'commit' if len(commits) == 1 else 'commits'} {', '.join(commits)}"


def _at_an_end(study: Finished) -> str:
    """The arms whose best learning rate is the lowest or the highest that they were tried at, so that another may be
    better still."""
    told = ""
    for end, further, which in (("lowest", "lower", min), ("highest", "higher", max)):
        arms = [
            arm.name
            for arm in study.study.arms
            if len(rates := study.study.rates_of(arm)) > 1 and study.table[arm.name]["learning_rate"] == which(rates)
        ]
        if arms:
            told += f" Best at the {end} learning rate that was tried, so that a {further} one may be better still: "
            told += f"{'all arms' if len(arms) == len(study.study.arms) else '; '.join(arms)}."
    return told


def _studies(done: dict[str, Finished], to_results: Path) -> str:
    """Per study where its numbers come from, and its table and figures."""
    lines = ["## The studies", ""]
    for name, study in done.items():
        runs = [result for results in study.runs.values() for result in results]
        first = runs[0]
        machines = ", ".join(sorted({result["versions"]["machine"] for result in runs}))
        lines += [
            f"### {name}",
            "",
            f"{study.study.question} Data: {study.study.plan.data}{_as_given(study)}; {first['tokens_seen']:,} tokens "
            f"a run, where the arm says nothing else; {machines}; {_made_at(study, runs)}. "
            f"There, `chiaroscuro study {name} --results FOLDER` makes the runs anew. Their table is "
            f"[{name}/table.md]({to_results / name / 'table.md'}), and each run's file lies in `results/{name}/runs`."
            f"{_at_an_end(study)}",
            "",
        ]
        figures = sorted((study.folder / "figures").glob("*.png"))
        lines += [f"![{name}: {path.stem}]({to_results / name / 'figures' / path.name})" for path in figures] + [""]
    return "\n".join(lines)
