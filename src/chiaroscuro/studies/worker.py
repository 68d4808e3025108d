"""One run of a study, as a process: `python -m chiaroscuro.studies.worker PLAN FOLDER RESULT CODE`."""

import gc
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers.utils import logging

from chiaroscuro.modeling import read_json
from chiaroscuro.studies.origin import code_digest
from chiaroscuro.training import METRICS, PLAN, Diverged, TrainingPlan, prepare, train, write_json

CURVE = ("step", "loss", "routing", "utilisation_entropy")


def run(plan_file: Path, folder: Path, result_file: Path, code: str) -> None:
    """Train by the plan in `folder`, going on from a checkpoint if there is one, and write the result with the
    curve. That a run diverged is a result too. Raises ValueError unless the source is that of the digest `code`."""
    if code_digest() != code:
        raise ValueError("the source was changed since the study began: start the study again")
    logging.set_verbosity_error()
    plan = TrainingPlan.read(read_json(plan_file), plan_file)
    with FileLock(f"{folder}.lock"):  # a process of a study that was killed may still be at it, and is waited for
        if result_file.exists():
            return
        resume = (folder / PLAN).exists()
        try:
            results = train(plan, prepare(plan), folder, resume)
        except Diverged as error:
            results = {"diverged": str(error), "plan": asdict(plan)}
        write_json(result_file, results | {"curve": curve(folder / METRICS)})


def curve(metrics: Path) -> list[dict[str, Any]]:
    """The logs of training; none of a run that diverged before its first."""
    lines = map(json.loads, metrics.read_text().splitlines() if metrics.exists() else [])
    return [{name: line[name] for name in CURVE if name in line} for line in lines if "loss" in line]


if __name__ == "__main__":
    gc.freeze()  # as the command does
    plan_file, folder, result_file = map(Path, sys.argv[1:4])
    run(plan_file, folder, result_file, code=sys.argv[4])
