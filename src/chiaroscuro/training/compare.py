"""Train a recipe and its same-size twin alike: same tokenizer, same batches, same budget."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from chiaroscuro.evaluation import unigram_perplexity
from chiaroscuro.training.folder import new_run_folder, write_json
from chiaroscuro.training.plan import TrainingPlan
from chiaroscuro.training.run import load_text, train


def compare(plan: TrainingPlan, against: str, out: Path) -> dict[str, Any]:
    """Train `plan` and then the recipe `against` by the same plan, into a run folder each below `out`.

    Returns, and writes to `comparison.json`, the results of both by recipe and the perplexity of a unigram model on
    the same held-out tokens. Raises ValueError when both are the same recipe, and as `train` does.
    """
    if against == plan.recipe:
        raise ValueError(f"nothing to compare: both recipes are {against!r}")
    twin = replace(plan, recipe=against)
    text = load_text(plan)
    for each in (plan, twin):
        each.config(len(text.tokenizer), text.tokenizer.eos_token_id)
    new_run_folder(out)
    runs = {each.recipe: train(each, text, out / each.recipe) for each in (plan, twin)}
    unigram = unigram_perplexity(text.tokens["train"], text.windows("test", plan.seq_len), len(text.tokenizer))
    comparison = {"runs": runs, "unigram_perplexity": unigram}
    write_json(out / "comparison.json", comparison)
    return comparison
