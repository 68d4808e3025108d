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


HEAD = (
    "Ratios of times measured in turn in one process: the median of each run, and the lowest and highest quartile of "
    "all; what the executed FLOPs would give; and the bound that was set, if any. Milliseconds are the middle of the "
    "runs. Half of the tokens of each row, drawn at random, are sent to attention in a layer that routes; with "
    '"all keys" they see all tokens before them, with "routed keys" those that were sent there too. The dense blend '
    "runs every operator on every token."
)
ABOUT = {  # what the folders of runs are called, and what is in them
    "run": 'All targets but `chiar`; "routed by entropy" takes the tokens of the highest entropy instead. Full '
    "attention beside `v2` has as many layers, and 4 % more parameters in its body; up to commit e5a5f8641eb3 it is "
    "the recipe `full_attention`, which is pre-norm, and after that the twin of `v2`.",
    "chiar": "The recipe `chiar` and its twin, given random ids of 512: of 4096 tokens 88 % recur, of 256 21 %.",
}


def clock(folder: Path, link: Path) -> str:
    """Times against full attention and the dense blend, from `folder`, one folder in it for each run of the bench;
    `link` leads there from the page."""
    series = [_series(folder, link, name) for name in ABOUT]
    plots = [_plot(path, link) for path in sorted(folder.glob("lengths/*.json"))]
    parts = [part for part in (*series, *plots) if part]
    missing = "Not measured: `chiaroscuro bench TARGET --out results/bench/run-1/TARGET.json`."
    return "\n\n".join(["## The clock", *([HEAD, *parts] if parts else [missing])]) + "\n"


def _series(folder: Path, link: Path, name: str) -> str:
    """The runs in the folders that are called `name` and a number, one after the other."""
    runs = {run.name: sorted(run.glob("*.json")) for run in sorted(folder.glob(f"{name}-*"))}
    files = [read_json(path) for paths in runs.values() for path in paths]
    if not files:
        return ""
    named = [
        f"{run}: {', '.join(f'[{path.stem}]({link / run / path.name})' for path in paths)}"
        for run, paths in runs.items()
    ]
    commits, machines, torches = (_all(files, each) for each in ("commit", "machine", "torch"))
    made = (
        f"{ABOUT[name]} {machines}; torch {torches}; commit {commits}. The runs, one after the other, in files that "
        f"name their commands: {'; '.join(named)}."
    )
    table = [["what", "ms", "against", "ms", "ratio", "by FLOPs", "bound"]]
    table += [[case, *_shown(other, times)] for (case, other), times in _by_case(files).items()]
    to_plan = [ratio for file in files for case in file["cases"] for ratio in case["executed_to_planned"].values()]
    agreement = f"Executed FLOPs are {min(to_plan):.3f} to {max(to_plan):.3f} of those planned."
    return "\n\n".join([made, page_table(table).rstrip("\n"), agreement])


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
