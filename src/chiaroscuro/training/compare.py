"""Train a recipe and its twin alike: as many parameters, same tokenizer, same batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from chiaroscuro.training.folder import COMPARISON, new_run_folder, write_json
from chiaroscuro.training.mixed import prepare
from chiaroscuro.training.plan import TrainingPlan
from chiaroscuro.training.run import train


def compare(plan: TrainingPlan, against: str, out: Path) -> dict[str, Any]:
    """Train `plan` and then the recipe `against` by the same plan, with as many layers as the twin of the first has,
    and a dense start only where there is routing, into a run folder each below `out`.

    Returns, and writes to `comparison.json`, the results of both by recipe and the perplexity of a unigram model on
    the same held-out tokens. Raises ValueError when both are the same recipe, and as `train` does.
    """
    if against == plan.recipe:
        raise ValueError(f"nothing to compare: both recipes are {against!r}")
    task = prepare(plan)
    layers = plan.config(task.fields()).twin().num_hidden_layers
    twin = replace(plan, recipe=against, fields=plan.fields | {"num_hidden_layers": layers}, dense_steps=0)
    if twin.config(task.fields()).gives_shares:
        twin = replace(twin, dense_steps=plan.dense_steps)
    new_run_folder(out)
    runs = {each.recipe: train(each, task, out / each.recipe) for each in (plan, twin)}
    words, number = task.by_chance()
    comparison = {"runs": runs, "by_chance": {words: number}}
    write_json(out / COMPARISON, comparison)
    return comparison
