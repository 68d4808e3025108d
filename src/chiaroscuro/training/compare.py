"""Train a recipe and another alike, such as its twin: same tokenizer, same batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from chiaroscuro.modeling.configuration import OF_ROUTING
from chiaroscuro.training.folder import COMPARISON, PLAN, alone_in, new_run_folder, write_json
from chiaroscuro.training.mixed import prepare
from chiaroscuro.training.plan import SMALL, TrainingPlan
from chiaroscuro.training.run import Stopped, train


def compare(plan: TrainingPlan, against: str, out: Path, resume: bool = False) -> dict[str, Any]:
    """Train `plan` and then the recipe `against` by the same plan, but for what the first's fields say of routing, with
    as many layers as the twin of the first has, and a dense start only where there is routing, into a run folder each
    below `out`. If `against` is that twin, it is as large.

    Returns, and writes to `comparison.json`, the results of both by recipe and the perplexity of a unigram model on
    the same held-out tokens. With `resume` the comparison in `out` goes on where it was left, each run as `train` has
    it. Raises ValueError when both are the same recipe, and as `train` does.
    """
    if against == plan.recipe:
        raise ValueError(f"nothing to compare: both recipes are {against!r}")
    task = prepare(plan)
    own = plan.config(task.fields()).twin()
    fields = {name: value for name, value in plan.fields.items() if name not in OF_ROUTING}
    sizes = {name: getattr(own, name) for name in SMALL}
    twin = replace(plan, recipe=against, fields=fields | sizes, dense_steps=0)
    if twin.config(task.fields()).gives_shares:
        twin = replace(twin, dense_steps=plan.dense_steps)
    with alone_in(out):
        if not resume:
            new_run_folder(out)
        try:
            runs = {plan.recipe: train(plan, task, out / plan.recipe, resume)}
            runs[against] = train(twin, task, out / against, resume and (out / against / PLAN).exists())
        except Stopped as stopped:
            raise Stopped(stopped.name, f"and saved; to go on, the same command with --out {out} --resume") from stopped
        words, number = task.by_chance()
        comparison = {"runs": runs, "by_chance": {words: number}}
        write_json(out / COMPARISON, comparison)
    return comparison
