"""Commands that make models: train, compare, convert."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chiaroscuro import tables
from chiaroscuro.cli.root import AsJson, app, console, free_folder, given, show, sources

if TYPE_CHECKING:
    from chiaroscuro.training import Run

Data = Annotated[
    str,
    typer.Option(
        help="a text file, a folder of them, or shakespeare, python, imdb, wikitext-2, wikitext-103, "
        "wikitext-validation"
    ),
]
TaskData = Annotated[
    str | None,
    typer.Option(
        help="lm: a text file, a folder of them, shakespeare, python (the sources of its standard library), imdb, "
        "wikitext-2, wikitext-103 or wikitext-validation (default: shakespeare). "
        "imdb: a folder with train.jsonl and test.jsonl (default: from the hub). The other tasks are generated"
    ),
]
Mix = Annotated[
    list[str] | None,
    typer.Option(metavar="TASK[=DATA]", help="add a batch of this task at a quarter of the steps; may be repeated"),
]
TestOn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=DATA",
        help="a further text that the trained model is measured on (articles:FILE makes running text of a file in "
        "WikiText's format); may be repeated",
    ),
]
TaskName = Annotated[
    str, typer.Option(help="lm (language modelling), recall, imdb, listops or listops_flat (classification)")
]
Tokenizer = Annotated[
    str | None,
    typer.Option(help="a folder with tokenizer.json, or vocab.json and merges.txt; default: trained on the data"),
]
BatchSize = Annotated[int, typer.Option(help="windows per step")]
Field = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="a field of ChiarConfig that differs from the recipe's; may be repeated"),
]
Steps = Annotated[int, typer.Option(help="optimiser steps")]
SeqLen = Annotated[int, typer.Option(help="tokens per window")]
LearningRate = Annotated[float, typer.Option("--lr", help="peak learning rate")]
VocabSize = Annotated[int, typer.Option(help="entries of the trained tokenizer")]
OwnSize = Annotated[int | None, typer.Option(help="default: the recipe's, or that of a small model where it has none")]
Seed = Annotated[int, typer.Option(help="seed of weights, data order and dropout")]


@app.command(epilog="Example: chiaroscuro train --recipe chiar --data my.txt --steps 1000 --out runs/mine")
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Option(help="the name of a recipe")] = "chiar",
    task: TaskName = "lm",
    data: TaskData = None,
    out: Annotated[Path | None, typer.Option(help="run folder to make; default: runs/RECIPE-N")] = None,
    tokenizer: Tokenizer = None,
    steps: Steps = 400,
    batch_size: BatchSize = 16,
    seq_len: SeqLen = 128,
    lr: LearningRate = 2e-3,
    vocab_size: VocabSize = 2048,
    hidden_size: OwnSize = None,
    layers: OwnSize = None,
    heads: OwnSize = None,
    field: Field = None,
    seed: Seed = 0,
    mix: Mix = None,
    test_on: TestOn = None,
    eval_tokens: Annotated[int | None, typer.Option(help="held-out tokens to measure on; default: all")] = None,
    save_every: Annotated[int | None, typer.Option(help="steps between checkpoints; default: none")] = None,
    dense_steps: Annotated[int, typer.Option(help="let all tokens attend at first, and fewer over so many steps")] = 0,
    resume: Annotated[bool, typer.Option(help="go on with the run in --out, by its own plan")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="mixed precision: products in bfloat16")] = False,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="under torchrun: spread weights and optimiser too")] = False,
    as_json: AsJson = False,
) -> None:
    """Train one model and leave a run folder."""
    from chiaroscuro.data import check_source
    from chiaroscuro.training import SMALL, TrainingPlan, prepare, ranks, started_plan, train

    folder = _run_folder(out, recipe, resume)
    if task == "recall" and tokenizer:
        raise ValueError("task recall is generated: it takes no --tokenizer")
    for name, source in ({task: data} | sources(mix)).items():
        check_source(name, source)
    plan = TrainingPlan(
        recipe=recipe,
        task=task,
        data=data if data is not None else "shakespeare" if task == "lm" else task,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        seq_len=seq_len,
        learning_rate=lr,
        eval_tokens=eval_tokens,
        mixed=sources(mix),
        test_on=sources(test_on),
        save_every=save_every,
        dense_steps=dense_steps,
        bf16=bf16,
        fields={name: size for name, size in zip(SMALL, (hidden_size, layers, heads), strict=True) if size is not None}
        | config_fields(field),
    )
    if resume and not given(context) - {"out", "resume", "fsdp", "as_json"}:
        plan = started_plan(folder)
    if out is None and ranks().num_processes > 1:
        raise ValueError("give --out, the run folder that all processes share")
    if fsdp and ranks().num_processes == 1:
        raise ValueError("--fsdp is for several processes: torchrun --nproc_per_node=N -m chiaroscuro train ...")
    results = train(plan, prepare(plan), folder, resume, fsdp)
    if results:
        show(results, as_json)


@app.command(epilog="Example: chiaroscuro compare --steps 200 --out runs/quick")
def compare(
    recipe: Annotated[str, typer.Option(help="the recipe to try")] = "chiar",
    against: Annotated[str | None, typer.Option(help="the recipe to hold it against; default: its baseline")] = None,
    data: Data = "shakespeare",
    out: Annotated[Path | None, typer.Option(help="folder to make; default: runs/compare-N")] = None,
    steps: Steps = 600,
    lr: LearningRate = 4e-3,  # the better one for `chiar` and for its twin (study `demo_seeds`)
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option(help="go on with the comparison in --out, given alike otherwise")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe and its same-size twin, or another one, alike, and show what each costs and how well it does. Both
    are small, 128 channels wide, whatever the sizes of the recipe."""
    from chiaroscuro import training
    from chiaroscuro.analysis import png, route_text
    from chiaroscuro.modeling.recipes import recipe_named

    plan = training.TrainingPlan(
        recipe=recipe, data=data, steps=steps, seed=seed, learning_rate=lr, fields=dict(training.SMALL)
    )
    out = _run_folder(out, "compare", resume)
    comparison = training.compare(plan, against or recipe_named(recipe).baseline, out, resume)
    run = training.load_run(out / recipe)
    picture = out / "routing.png"
    png(route_text(run.model, run.tokenizer, passage(run)), picture)
    if as_json:
        console.print_json(data=comparison)
        return
    runs = comparison["runs"]
    console.print(tables.runs(runs, f"{data}, {runs[recipe]['tokens_seen']:,} tokens, held-out text"))
    for words, number in comparison["by_chance"].items():
        print(f"By chance: {words}, {number:.4g}, on the same held-out text.")
    print(f"Where the tokens of a held-out passage go: {picture}")
    print("\nTry next:")
    print(f'  chiaroscuro generate {out / recipe} "To be"')
    print(f'  chiaroscuro route {out / recipe} "Shall I compare thee to a summer\'s day?"')
    print(f"  chiaroscuro eval {out / recipe}")


@app.command(epilog="Example: chiaroscuro convert checkpoint.pt converted")
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="a checkpoint of the paper's public code")],
    out: Annotated[Path, typer.Argument(help="folder to make")],
) -> None:
    """Turn a checkpoint of the paper's code into a folder that from_pretrained reads."""
    from chiaroscuro.modeling.convert import convert
    from chiaroscuro.training import alone_in, new_run_folder

    model = convert(checkpoint)
    with alone_in(out):
        model.save_pretrained(new_run_folder(out))
    print(f"{model.num_parameters():,} parameters written to {out}")


def config_fields(given: list[str] | None) -> dict[str, Any]:
    """By name what was given as NAME=VALUE; a value that is no JSON is a string. Raises ValueError without a value."""
    found: dict[str, Any] = {}
    for each in given or ():
        name, equals, value = each.partition("=")
        if not equals:
            raise ValueError(f"--field takes NAME=VALUE, got {each!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _run_folder(out: Path | None, name: str, resume: bool) -> Path:
    """Where to train: in a folder of that name that is not taken, unless it was said where."""
    if resume and out is None:
        raise ValueError("--resume needs --out, the folder to go on in")
    return out or free_folder(name)


def passage(run: "Run", tokens: int = 160) -> str:
    """The beginning of the run's test text."""
    from chiaroscuro.training import LanguageModelling, task_of

    task = task_of(run)
    assert isinstance(task, LanguageModelling)
    return str(run.tokenizer.decode(task.tokens["test"][:tokens].astype(int).tolist()))
