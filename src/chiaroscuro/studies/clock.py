"""The section on times of the page of results: what `chiaroscuro bench` measured, run after run."""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

from chiaroscuro.modeling import read_json
from chiaroscuro.studies.table import page_table


class Time(NamedTuple):
    """One case of one run against one other side: seconds of both, the ratio with its quartiles, what the FLOPs would
    give, and the bound that was set, if any."""

    seconds: tuple[float, float]
    ratio: tuple[float, float, float]
    by_flops: float
    bound: float | None


def clock(folder: Path, link: Path) -> str:
    """Times against full attention and the dense blend, from `folder`, one folder in it for each run of the bench;
    `link` leads there from the page."""
    lines = ["## The clock", ""]
    runs = {run.name: sorted(run.glob("*.json")) for run in sorted(folder.glob("run-*"))}
    if not runs:
        return "\n".join(
            [*lines, "Not measured: `chiaroscuro bench TARGET --out results/bench/run-1/TARGET.json`.", ""]
        )
    files = [read_json(path) for paths in runs.values() for path in paths]
    named = [
        f"{run}: {', '.join(f'[{path.stem}]({link / run / path.name})' for path in paths)}"
        for run, paths in runs.items()
    ]
    commits, machines, torches = (_all(files, name) for name in ("commit", "machine", "torch"))
    lines += [
        f"{machines}; torch {torches}; commit {commits}. Ours sends half of the tokens of each row, drawn at random, "
        'to attention, where they see all tokens before them ("all keys") or those that were sent there too ("routed '
        'keys"); "routed by entropy" takes those of the highest entropy instead, and the dense blend runs every '
        "operator on every token. Full attention beside `v2` is the recipe `full_attention`, as large, and pre-norm. "
        "Ratios of times measured in turn in one process: the median of each run, and the lowest and highest quartile "
        "of all; what the executed FLOPs would give; and the bound that was set. Milliseconds are the middle of the "
        f"runs. The runs, one after the other, in files that name their commands: {'; '.join(named)}.",
        "",
    ]
    table = [["what", "ms", "against", "ms", "ratio", "by FLOPs", "bound"]]
    table += [[name, *_shown(other, times)] for (name, other), times in _by_case(files).items()]
    to_plan = [ratio for file in files for case in file["cases"] for ratio in case["executed_to_planned"].values()]
    agreement = f"Executed FLOPs are {min(to_plan):.3f} to {max(to_plan):.3f} of those planned.\n"
    plots = [_plot(path, link) for path in sorted(folder.glob("lengths/*.json"))]
    return "\n".join([*lines, page_table(table), agreement, *plots, ""])


def _plot(path: Path, link: Path) -> str:
    """The picture that lies beside a file of times by length, and what it was made by."""
    file = read_json(path)
    made, rounds = file["versions"], " to ".join(str(n) for n in sorted({case["rounds"] for case in file["cases"]}))
    picture = f"![{path.stem}: time by sequence length]({link / 'lengths' / path.with_suffix('.png').name})"
    return f"{picture}\n\n{made['machine']}; torch {made['torch']}; commit {made['commit']}; {rounds} rounds a length."


def _all(files: list[dict[str, Any]], name: str) -> str:
    return ", ".join(sorted({file["versions"][name] for file in files}))


def _by_case(files: list[dict[str, Any]]) -> dict[tuple[str, str], list[Time]]:
    """Per case and side that ours is held against, its times in the order of the runs."""
    found: dict[tuple[str, str], list[Time]] = {}
    for file in files:
        for case in file["cases"]:
            ours = case["seconds"][next(iter(case["seconds"]))]
            for other, ratio in case["ratio"].items():
                seconds = ours, case["seconds"][other]
                time = Time(seconds, tuple(ratio), case["predicted"][other], case["at_most"].get(other))
                found.setdefault((case["name"], other), []).append(time)
    return found


def _shown(other: str, times: list[Time]) -> list[str]:
    """The cells of one row, but for the name of the case."""
    ours, theirs = (
        f"{1e3 * statistics.median(side):.1f}" for side in zip(*(time.seconds for time in times), strict=True)
    )
    low, high = min(time.ratio[1] for time in times), max(time.ratio[2] for time in times)
    ratio = f"{', '.join(f'{time.ratio[0]:.3f}' for time in times)} ({low:.3f} to {high:.3f})"
    bound = times[0].bound
    missed = 0 if bound is None else sum(time.ratio[0] > bound for time in times)
    verdict = f"missed in {missed} of {len(times)}" if missed else "met"
    by_flops = statistics.median(time.by_flops for time in times)
    return [ours, other, theirs, ratio, f"{by_flops:.3f}", "" if bound is None else f"{bound:.2f}, {verdict}"]
