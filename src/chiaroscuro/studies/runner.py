"""Run the grid of a study, several processes at a time, resumable after a kill at any moment.

Every run is a process of its own that leaves its result, whole or not at all, in `results/NAME/runs`. A run that is
there is not done again; one that was stopped goes on from its last checkpoint. Results of other code or data are not
added to, nor are runs gone on with that other code or data began; that a result belongs to the study as it is declared
is seen from the plan inside it.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, TimeElapsedColumn

from chiaroscuro.modeling import read_json
from chiaroscuro.progress import bar
from chiaroscuro.studies.origin import claim, origin_of
from chiaroscuro.studies.study import Study, StudyRun
from chiaroscuro.training import TrainingPlan, prepare, write_json

# What tables, figures and verdicts take of a result.
OF_EVERY_RUN = (
    *("loss", "perplexity", "bits_per_byte", "accuracy", "validation", "routing"),
    *("steps", "tokens_seen", "parameters", "flops", "data", "versions", "plan", "curve"),
)


class Unfinished(ValueError):
    """Runs of a study are missing, or an arm has none to show."""


@dataclass(frozen=True)
class Places:
    """Where a study keeps what it is for, the results, and what it works with, which may be removed."""

    results: Path
    work: Path

    def result(self, run: StudyRun) -> Path:
        return self.results / "runs" / f"{run.name}.json"


def run_study(study: Study, places: Places, processes: int) -> dict[str, dict[str, Any]]:
    """Do what is not done yet, and return the results of all runs by name.

    Raises ValueError when the results there are of other code, data or plans, when one of them is damaged, and, after
    everything else has been done, when runs failed, and when all of an arm diverged.
    """
    study.plan.warn_if_slow()
    task = prepare(study.with_all_data())
    origin = origin_of(task)
    claim(places.results, origin)
    places = replace(places, work=places.work / origin.name)
    tokenizer = places.work / "tokenizer"
    task.tokenizer.save_pretrained(tokenizer)
    study = replace(study, plan=replace(study.plan, tokenizer=str(tokenizer)))

    results = _run_all(study.search(), places, processes, origin.code)
    best = study.best_rates(results)
    results |= _run_all(study.repetitions(best), places, processes, origin.code)
    _check_none_lost(study, best)
    return results


def _check_none_lost(study: Study, best: dict[str, float]) -> None:
    lost = [arm.name for arm in study.arms if arm.name not in best]
    if lost:
        raise Unfinished(f"study {study.name!r}: {', '.join(lost)} diverged at every learning rate: give it lower ones")


def read_results(study: Study, places: Places) -> dict[str, dict[str, Any]]:
    """The results by name of all runs of a finished study, whatever code made them.

    Raises Unfinished, a ValueError, when runs are missing and when an arm diverged at every learning rate, and
    ValueError as `run_study` does for damaged results and other plans.
    """
    results = {run.name: read_result(run, places) for run in study.search() if places.result(run).exists()}
    if len(results) == len(study.search()):
        best = study.best_rates(results)
        _check_none_lost(study, best)
        runs = study.repetitions(best)
        results |= {run.name: read_result(run, places) for run in runs if places.result(run).exists()}
    count = len(study.search()) + len(study.arms) * (len(study.seeds) - study.tuning_seeds)
    if len(results) < count:
        raise Unfinished(f"{len(results)} of the {count} runs of study {study.name!r} are there")
    return results


def read_result(run: StudyRun, places: Places) -> dict[str, Any]:
    """The result of one run. Raises ValueError when it is damaged, and when it was made by another plan than the study
    now declares."""
    result = read_json(places.result(run))
    whole = (*OF_EVERY_RUN, *(["test_on"] if run.plan.test_on else []))
    missing = [] if "diverged" in result else [name for name in whole if name not in result]
    if missing:
        raise ValueError(
            f"{places.result(run)} is damaged ({missing[0]} is missing): restore it, or remove it and make it again"
        )
    declared, made = json.loads(json.dumps(asdict(run.plan))), result.get("plan", {})
    # Where data and tokenizer lie is no part of it; an option that the result does not know stood at its default.
    defaults = asdict(TrainingPlan())
    sources = ("mixed", "test_on")
    names = [name for name in declared if name not in ("data", "tokenizer", "save_every", *sources)]
    changed = [name for name in names if made.get(name, defaults[name]) != declared[name]]
    changed += [name for name in sources if set(made.get(name, {})) != set(declared[name])]
    if changed:
        raise ValueError(
            f"{places.result(run)} was made by another plan ({', '.join(changed)} differ): move it away, or give "
            "another --results"
        )
    return result


def _run_all(runs: list[StudyRun], places: Places, processes: int, code: str) -> dict[str, dict[str, Any]]:
    results = {run.name: read_result(run, places) for run in runs if places.result(run).exists()}
    waiting = [run for run in runs if run.name not in results]
    failed = []
    with bar(MofNCompleteColumn(), TimeElapsedColumn()) as progress, ThreadPoolExecutor(processes) as pool:
        count = progress.add_task("runs", total=len(runs), completed=len(results))
        threads = max(1, (os.cpu_count() or 1) // processes)
        futures = {pool.submit(_run_one, run, places, threads, code): run for run in waiting}
        try:
            for future in as_completed(futures):
                run = futures[future]
                if future.result():
                    results[run.name] = read_result(run, places)
                else:
                    failed.append(run.name)
                progress.update(count, advance=1, description=run.name)
        except BaseException:  # Ctrl-C among them, which also tells the runs that have begun: they save and end
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(runs)} runs failed: {', '.join(sorted(failed))}; what they printed is in "
            f"{places.work}; the others are kept, run the study again for these"
        )
    return results


def _run_one(run: StudyRun, places: Places, threads: int, code: str) -> bool:
    """Whether the run's process finished and left its result."""
    folder = places.work / run.name
    plan = places.work / f"{run.name}.plan.json"
    write_json(plan, asdict(run.plan))
    command = [sys.executable, "-m", "chiaroscuro.studies.worker"]
    command += [str(plan), str(folder), str(places.result(run)), code]
    # One thread pool per core: more threads than cores wait for each other most of the time.
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with (places.work / f"{run.name}.log").open("w") as log:
        finished = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
    return finished.returncode == 0 and places.result(run).exists()
