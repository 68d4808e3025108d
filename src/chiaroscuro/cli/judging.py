"""Commands that use and judge a model: eval, generate, calibrate, audit."""

from typing import Annotated, Any

import typer

from chiaroscuro import tables
from chiaroscuro.cli.root import AsJson, RunFolder, app, console, load, show


@app.command("eval", epilog="Example: chiaroscuro eval runs/mine --data other.txt --stride 64")
def evaluate(
    run: RunFolder,
    data: Annotated[str | None, typer.Option(help="another text than the run's own")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    stride: Annotated[
        int | None,
        typer.Option(
            help="tokens by which a sliding window moves over the whole split; default: windows side by side, as in "
            "results.json, over as much as the run was measured on"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Perplexity, bits per byte and operator shares on held-out text."""
    from dataclasses import asdict

    from chiaroscuro.data import SPLITS, token_bytes
    from chiaroscuro.evaluation import evaluate_sliding
    from chiaroscuro.training import LanguageModelling, task_of

    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known splits: {', '.join(SPLITS)}")
    loaded = load(run)
    task = task_of(loaded, data)
    report: dict[str, Any] = {"recipe": loaded.model.config.recipe, "split": split}
    if stride is None:
        found = task.measure(loaded.model, split, show_progress=True)
    elif isinstance(task, LanguageModelling):
        window = task.windows[split].length
        sizes = token_bytes(task.tokenizer)
        found = evaluate_sliding(loaded.model, task.tokens[split], sizes, window, stride, show_progress=True)
        report |= {"window": window, "stride": stride}
    else:
        raise ValueError(f"{run} was trained for task {task.plan.task!r}; --stride is for language modelling")
    show(report | {name: value for name, value in asdict(found).items() if value is not None}, as_json)


@app.command(epilog='Example: chiaroscuro generate runs/mine "To be" --tokens 60')
def generate(
    run: RunFolder,
    prompt: Annotated[str, typer.Argument(help="the text to go on from")],
    tokens: Annotated[int, typer.Option(min=1, help="tokens to add")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token")] = 0.8,
    top_k: Annotated[int, typer.Option(min=1, help="draw from the k likeliest tokens")] = 50,
    seed: Annotated[int, typer.Option(help="seed of the draws")] = 0,
) -> None:
    """Continue a text."""
    from transformers import TextStreamer, set_seed

    from chiaroscuro.analysis import sampling
    from chiaroscuro.data import encode_text

    loaded = load(run)
    model: Any = loaded.model  # transformers types generate for models of its own
    if not hasattr(model, "generate"):
        raise ValueError(f"{run} holds a classifier; generate needs a language model")
    inputs = encode_text(loaded.tokenizer, prompt, return_tensors="pt")
    given, limit = inputs["input_ids"].numel(), model.config.max_position_embeddings
    if not given:
        raise ValueError("the prompt is empty: give at least one character")
    if given + tokens > limit:
        raise ValueError(f"the prompt has {given} tokens and {tokens} more are wanted; the model takes at most {limit}")
    set_seed(seed)
    model.generate(
        input_ids=inputs["input_ids"].to(model.device),
        max_new_tokens=tokens,
        streamer=TextStreamer(loaded.tokenizer, skip_special_tokens=True),
        **sampling(temperature, top_k),
    )


@app.command(epilog="Example: chiaroscuro calibrate runs/mine --data other.txt")
def calibrate(
    run: RunFolder,
    data: Annotated[str | None, typer.Option(help="held-out text; default: the run's own validation text")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="tokens to calibrate on")] = 4096,
    as_json: AsJson = False,
) -> None:
    """Set the thresholds of each layer from held-out text, and save them in the run folder, whose results are of the
    thresholds before: `eval` measures anew."""
    from dataclasses import asdict

    from chiaroscuro.ops import noise_entropy
    from chiaroscuro.routing import router_class
    from chiaroscuro.training import recalibrate

    loaded = load(run)
    found = recalibrate(loaded, tokens, data)
    config = loaded.model.config
    noise = noise_entropy(config.hidden_size) if router_class(config.router).reads_entropy else None
    if as_json:
        console.print_json(data={"noise_entropy": noise, "layers": [asdict(layer) for layer in found]})
        return
    console.print(tables.thresholds(found, noise))


@app.command(epilog="Example: chiaroscuro audit runs/mine")
def audit(
    name: Annotated[
        str, typer.Argument(metavar="RUN_OR_RECIPE", help="a run, a folder with a transformers model, or a recipe")
    ],
    data: Annotated[str | None, typer.Option(help="another text than the run's own")] = None,
    as_json: AsJson = False,
) -> None:
    """Whether a model can be trusted: reads no later token, keeps rows apart, routes as it says. Exit code 1 if not."""
    from dataclasses import asdict

    from chiaroscuro import analysis
    from chiaroscuro.progress import tracked

    found = analysis.audit(*analysis.subject(name, data), lambda checks: tracked(checks, "auditing"))
    if as_json:
        console.print_json(data=[asdict(each) for each in found])
    else:
        console.print(tables.findings(found, name))
    raise typer.Exit(any(each.holds is False for each in found))
