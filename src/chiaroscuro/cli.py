"""The command `chiaroscuro`. Each subcommand imports what it needs when it runs, so that `--help` answers at once."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from click.core import ParameterSource
from rich.console import Console

from chiaroscuro import tables

if TYPE_CHECKING:
    from chiaroscuro.training import Run

app = typer.Typer(
    help="CHIAR-Former: attention where tokens are complex, cheaper mixing where they are not.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, as train and compare leave it")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]
Data = Annotated[
    str, typer.Option(help="a text file, a folder of text files, or shakespeare, imdb, wikitext-2, wikitext-103")
]
TaskName = Annotated[str, typer.Option(help="lm (language modelling), imdb, listops or listops_flat (classification)")]
Tokenizer = Annotated[
    str | None,
    typer.Option(help="a folder with tokenizer.json, or vocab.json and merges.txt; default: trained on the data"),
]
Steps = Annotated[int, typer.Option(help="optimiser steps")]
BatchSize = Annotated[int, typer.Option(help="windows per step")]
SeqLen = Annotated[int, typer.Option(help="tokens per window")]
LearningRate = Annotated[float, typer.Option("--lr", help="peak learning rate")]
VocabSize = Annotated[int, typer.Option(help="entries of the trained tokenizer")]
HiddenSize = Annotated[int, typer.Option(help="model width")]
Layers = Annotated[int, typer.Option(help="number of layers")]
Heads = Annotated[int, typer.Option(help="attention heads")]
Seed = Annotated[int, typer.Option(help="seed of weights, data order and dropout")]


def main() -> None:
    """Run the command line; what is wrong with the input is told in one line, exit code 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"chiaroscuro: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))


@app.callback()
def quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@app.command(epilog="Example: chiaroscuro train --recipe chiar --data my.txt --steps 1000 --out runs/mine")
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Option(help="the name of a recipe")] = "chiar",
    task: TaskName = "lm",
    data: Annotated[
        str | None,
        typer.Option(
            help="lm: a text file, a folder of them, shakespeare, imdb, wikitext-2 or wikitext-103 (default: "
            "shakespeare). imdb: a folder with train.jsonl and test.jsonl (default: from the hub). ListOps is generated"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="run folder to make; default: runs/RECIPE-N")] = None,
    tokenizer: Tokenizer = None,
    steps: Steps = 400,
    batch_size: BatchSize = 16,
    seq_len: SeqLen = 128,
    lr: LearningRate = 2e-3,
    vocab_size: VocabSize = 2048,
    hidden_size: HiddenSize = 128,
    layers: Layers = 4,
    heads: Heads = 4,
    seed: Seed = 0,
    mix: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK[=DATA]", help="add a batch of this task at a quarter of the steps; may be repeated"),
    ] = None,
    eval_tokens: Annotated[int | None, typer.Option(help="held-out tokens to measure on; default: all")] = None,
    save_every: Annotated[int | None, typer.Option(help="steps between checkpoints; default: none")] = None,
    resume: Annotated[bool, typer.Option(help="go on with the run in --out, by its own plan")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="mixed precision: products in bfloat16")] = False,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="under torchrun: spread weights and optimiser too")] = False,
    as_json: AsJson = False,
) -> None:
    """Train one model and leave a run folder."""
    from chiaroscuro.training import TrainingPlan, prepare, ranks, started_plan, train

    if resume and out is None:
        raise ValueError("--resume needs --out, the run folder to go on in")
    plan = TrainingPlan(
        recipe=recipe,
        task=task,
        data=data or ("shakespeare" if task == "lm" else task),
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        seq_len=seq_len,
        learning_rate=lr,
        warmup_steps=max(1, steps // 10),
        eval_tokens=eval_tokens,
        mixed={name: source or name for name, _, source in (each.partition("=") for each in mix or ())},
        save_every=save_every,
        bf16=bf16,
        fields={"hidden_size": hidden_size, "num_hidden_layers": layers, "num_attention_heads": heads},
    )
    if resume and out is not None and not given(context) - {"out", "resume", "fsdp", "as_json"}:
        plan = started_plan(out)
    if out is None and ranks().num_processes > 1:
        raise ValueError("give --out, the run folder that all processes share")
    if fsdp and ranks().num_processes == 1:
        raise ValueError("--fsdp is for several processes: torchrun --nproc_per_node=N -m chiaroscuro train ...")
    results = train(plan, prepare(plan), out or free_folder(recipe), resume, fsdp)
    if results:
        show(results, as_json)


@app.command(epilog="Example: chiaroscuro compare --steps 200 --out runs/quick")
def compare(
    recipe: Annotated[str, typer.Option(help="the recipe to try")] = "chiar",
    against: Annotated[str, typer.Option(help="the recipe to hold it against")] = "full_attention",
    data: Data = "shakespeare",
    out: Annotated[Path | None, typer.Option(help="folder to make; default: runs/compare-N")] = None,
    steps: Steps = 600,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a recipe and its same-size twin alike, and show what each costs and how well it does."""
    from chiaroscuro import training
    from chiaroscuro.analysis import png, route_text

    plan = training.TrainingPlan(recipe=recipe, data=data, steps=steps, seed=seed)
    out = out or free_folder("compare")
    comparison = training.compare(plan, against, out)
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


@app.command("eval", epilog="Example: chiaroscuro eval runs/mine --data other.txt --stride 64")
def evaluate(
    run: RunFolder,
    data: Annotated[str | None, typer.Option(help="another text than the run's own")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    stride: Annotated[
        int | None,
        typer.Option(help="tokens by which a sliding window moves; default: windows side by side, as in results.json"),
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
        found = task.measure(loaded.model, split, not as_json)
    elif isinstance(task, LanguageModelling):
        window = task.windows[split].length
        sizes = token_bytes(task.tokenizer)
        found = evaluate_sliding(loaded.model, task.tokens[split], sizes, window, stride, show_progress=not as_json)
        report |= {"window": window, "stride": stride}
    else:
        raise ValueError(f"{run} holds a classifier; --stride is for language models")
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

    loaded = load(run)
    model: Any = loaded.model  # transformers types generate for models of its own
    if not hasattr(model, "generate"):
        raise ValueError(f"{run} holds a classifier; generate needs a language model")
    inputs = loaded.tokenizer(prompt, return_tensors="pt")
    given, limit = inputs["input_ids"].numel(), model.config.max_position_embeddings
    if not given:
        raise ValueError("the prompt is empty: give at least one character")
    if given + tokens > limit:
        raise ValueError(f"the prompt has {given} tokens and {tokens} more are wanted; the model takes at most {limit}")
    set_seed(seed)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature > 0 else {"do_sample": False}
    )
    model.generate(
        input_ids=inputs["input_ids"].to(model.device),
        max_new_tokens=tokens,
        streamer=TextStreamer(loaded.tokenizer, skip_special_tokens=True),
        **sampling,
    )


@app.command(epilog='Example: chiaroscuro route runs/mine "To be, or not to be" --png routing.png')
def route(
    run: RunFolder,
    text: Annotated[str, typer.Argument(help="the text to route")],
    png: Annotated[Path | None, typer.Option(help="write a picture to this file as well")] = None,
    html: Annotated[Path | None, typer.Option(help="write a page with what is known of each token on hover")] = None,
    by: Annotated[str, typer.Option(help="what the page is coloured by: operator, entropy or loss")] = "operator",
    as_json: AsJson = False,
) -> None:
    """Show which operator each token of a text goes to, layer by layer."""
    from chiaroscuro import analysis

    loaded = load(run)
    if by not in analysis.COLOURINGS:
        raise ValueError(f"unknown colouring {by!r}; known: {', '.join(analysis.COLOURINGS)}")
    routed = analysis.route_text(loaded.model, loaded.tokenizer, text)
    if png is not None:
        analysis.png(routed, png)
    if html is not None:
        html.write_text(analysis.page(routed, f"{run}: where tokens go", by))
    if as_json:
        console.print_json(data=routed.as_dict())
    else:
        console.print(analysis.terminal(routed))


@app.command(epilog="Example: chiaroscuro tokens runs/mine --out results/tokens/mine")
def tokens(
    run: RunFolder,
    data: Annotated[str | None, typer.Option(help="another text than the run's own")] = None,
    windows: Annotated[int, typer.Option(min=2, help="windows of the test text to look at")] = 64,
    pairs: Annotated[int, typer.Option(min=2, help="pairs of interventions per layer")] = 8,
    out: Annotated[Path | None, typer.Option(help="write tokens.json and tokens.png into this folder")] = None,
    as_json: AsJson = False,
) -> None:
    """Which tokens get attention, by word class and frequency, and whether it is those that it helps."""
    from rich.progress import track
    from transformers import set_seed

    from chiaroscuro import ChiarForCausalLM, analysis
    from chiaroscuro.training import LanguageModelling, task_of, versions, write_json

    loaded = load(run)
    task = task_of(loaded, data)
    if not isinstance(loaded.model, ChiarForCausalLM) or not isinstance(task, LanguageModelling):
        raise ValueError(f"{run} holds a classifier; tokens needs a language model")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    test = task.windows["test"]
    spread = range(0, len(test), max(1, len(test) // windows))[:windows]
    set_seed(task.plan.seed)
    found = analysis.study_tokens(
        loaded.model,
        task.build(loaded.model.config).eval(),
        analysis.sample(test.batch(spread), loaded.tokenizer, task.tokens["train"]),
        task.calibration_text(),
        pairs,
        progress=lambda layers: track(layers, "forcing layers", transient=True, disable=as_json),
    )
    if out is not None:
        write_json(out / "tokens.json", {"run": loaded.results, "versions": versions()} | found)
        analysis.draw_tokens(found, out / "tokens.png")
    if as_json:
        console.print_json(data=found)
        return
    for layer, figures in found["layers"].items():
        console.print(tables.word_classes(figures["by_class"], int(layer)))
        for name, figure in (figures["rank_correlation"] | figures["benefit"]).items():
            print(f"{name.replace('_', ' ')}: {figure['value']:+.4f} ± {figure['error']:.4f}")


@app.command(epilog="Example: chiaroscuro calibrate runs/mine --data other.txt")
def calibrate(
    run: RunFolder,
    data: Annotated[str | None, typer.Option(help="held-out text; default: the run's own validation text")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="tokens to calibrate on")] = 4096,
    as_json: AsJson = False,
) -> None:
    """Set the thresholds of each layer from held-out text, and save them in the run folder."""
    from dataclasses import asdict

    from chiaroscuro.ops import noise_entropy
    from chiaroscuro.routing import calibrate
    from chiaroscuro.training import task_of

    loaded = load(run)
    text = task_of(loaded, data).windows["validation"]
    found = calibrate(loaded.model, text.batch(range(min(len(text), -(-tokens // text.length)))))
    if not found:
        raise ValueError(f"nothing to calibrate: {run} has no layer with a threshold router")
    loaded.model.save_pretrained(run)
    noise = noise_entropy(loaded.model.config.hidden_size)
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

    from rich.progress import track

    from chiaroscuro import analysis

    model, input_ids = analysis.subject(name, data)
    found = analysis.audit(model, input_ids, lambda checks: track(checks, "auditing", transient=True, disable=as_json))
    if as_json:
        console.print_json(data=[asdict(each) for each in found])
    else:
        console.print(tables.findings(found, name))
    raise typer.Exit(any(each.holds is False for each in found))


@app.command(epilog="Example: chiaroscuro convert checkpoint.pt converted")
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="a checkpoint of the paper's public code")],
    out: Annotated[Path, typer.Argument(help="folder to make")],
) -> None:
    """Turn a checkpoint of the paper's code into a folder that from_pretrained reads."""
    from chiaroscuro.modeling.convert import convert
    from chiaroscuro.training import new_run_folder

    model = convert(checkpoint)
    model.save_pretrained(new_run_folder(out))
    print(f"{model.num_parameters():,} parameters written to {out}")


@app.command(epilog="Example: chiaroscuro study smoke --processes 2")
def study(
    name: Annotated[str, typer.Argument(help="the name of a study")],
    results: Annotated[Path | None, typer.Option(help="where results are kept; default: results/NAME")] = None,
    data: Annotated[str | None, typer.Option(help="other data than the study's own")] = None,
    processes: Annotated[int, typer.Option(help="runs at a time")] = 2,
    as_json: AsJson = False,
) -> None:
    """Run a grid of recipes, learning rates and seeds, going on where it was left, and write its table and figures."""
    from chiaroscuro import studies
    from chiaroscuro.training import write_json

    if processes < 1:
        raise ValueError(f"--processes must be at least 1, got {processes}")
    chosen = studies.study_named(name)
    if data is not None:
        chosen = chosen.on(data)
    places = studies.Places(results or Path("results") / name, Path("runs") / "studies" / name)
    found = studies.run_study(chosen, places, processes)
    table = studies.rows(chosen, found)
    studies.draw(chosen, found, table, places.results / "figures")
    write_json(places.results / "table.json", {"rows": table})
    page = studies.markdown(chosen, table)
    (places.results / "table.md").write_text(page)
    if as_json:
        console.print_json(data={"rows": table})
    else:
        print(page)


@app.command(epilog="Example: chiaroscuro bench layer --rounds 9")
def bench(
    target: Annotated[str, typer.Argument(help="op, spectral, layer, model, train, decode or compile")],
    rounds: Annotated[int, typer.Option(min=2, help="times that each side is run, in turn with the others")] = 9,
    lengths: Annotated[
        list[int] | None, typer.Option("--length", help="tokens; may be repeated; default: the sizes that have bounds")
    ] = None,
    batch_size: BatchSize = 1,
    hidden_size: HiddenSize = 512,
    layers: Layers = 8,
    heads: Heads = 8,
    plot: Annotated[Path | None, typer.Option(help="write time against the given lengths to this file")] = None,
    out: Annotated[Path | None, typer.Option(help="write the figures to this file, as JSON")] = None,
    as_json: AsJson = False,
) -> None:
    """Time routed attention against full attention and the dense blend, side by side on this machine."""
    import torch

    from chiaroscuro import bench
    from chiaroscuro.training import versions, write_json

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if plot is not None and not lengths:
        raise ValueError("--plot needs --length, more than once")
    wanted: dict[int, bench.Sizes | None] = {
        length: bench.Sizes(batch_size, length, hidden_size, heads, layers, device, dtype) for length in lengths or ()
    }
    measured = {
        length: [bench.measure(case, rounds) for case in bench.cases(target, sizes)]
        for length, sizes in (wanted or {0: None}).items()
    }
    report = {
        "target": target,
        "versions": versions(),
        "cases": [each.as_dict() for group in measured.values() for each in group],
    }
    if plot is not None:
        bench.plot(measured, plot)
    if out is not None:
        write_json(out, report)
    if as_json:
        console.print_json(data=report)
        return
    for each in (each for group in measured.values() for each in group):
        console.print(tables.times(each))


@app.command(epilog="Example: chiaroscuro report")
def report(
    results: Annotated[Path, typer.Option(help="where the studies keep their results")] = Path("results"),
    page: Annotated[Path, typer.Option(help="the page to write")] = Path("docs/results.md"),
) -> None:
    """Write the page of results: each claim of the paper, how it was tested, the numbers and the verdict."""
    from chiaroscuro import studies

    text = studies.report([study for study in studies.STUDIES.values() if study.name != "smoke"], results, page)
    page.write_text(text)
    print(f"written to {page}")


@app.command(epilog="Example: chiaroscuro plot runs/mine")
def plot(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="folder to write into; default: RUN/figures")] = None,
) -> None:
    """Draw how a run was trained: loss, shares and utilisation entropy by step, entropies against those of noise."""
    from chiaroscuro import analysis
    from chiaroscuro.training import task_of

    loaded = load(run)
    figures = analysis.training_figures(run)
    entropies = analysis.entropy_figure(loaded.model, task_of(loaded).calibration_text())
    if entropies is not None:
        figures["entropies"] = entropies
    out = out or run / "figures"
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=120)
        print(out / f"{name}.png")


@app.command("app", epilog="Example: chiaroscuro app runs/compare-1/chiar runs/compare-1/full_attention")
def serve(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN ...]", help="run folders; default: the last below runs/, or one trained now"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="address to listen on; the default is seen by this machine only")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 7860,
) -> None:
    """Open a page that shows where tokens go, lets you intervene, writes, and draws how a run was trained."""
    import os

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        from chiaroscuro import app as room
    except ImportError as error:
        raise ValueError(f"the page needs gradio: pip install 'chiaroscuro[app]' ({error})") from error

    note, folders = "", runs or room.last_runs(Path("runs"))
    if not runs and folders:
        note = f"Showing the last run found, {folders[0]}."
    if not folders:
        from chiaroscuro.training import TrainingPlan, prepare, train

        folders = [free_folder("demo")]
        note = f"No run was given and none found, so a small model was trained on Shakespeare's plays: {folders[0]}."
        print("No run given and none found: training a small one, about a minute.")
        plan = TrainingPlan()
        train(plan, prepare(plan), folders[0])
    print(f"{note} The page: http://{host}:{port} (Ctrl-C ends it)".strip(), flush=True)
    room.build(room.Shelf(folders), note).launch(
        server_name=host, server_port=port, theme=room.THEME, css=room.CSS, ssr_mode=False, show_error=True, quiet=True
    )


def given(context: typer.Context) -> set[str]:
    """The options that were written on the command line."""
    return {name for name in context.params if context.get_parameter_source(name) == ParameterSource.COMMANDLINE}


def free_folder(name: str) -> Path:
    """runs/NAME-N with the first N that is not taken."""
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder


def load(folder: Path) -> "Run":
    from chiaroscuro.training import load_run

    return load_run(folder)


def passage(run: "Run", tokens: int = 160) -> str:
    """The beginning of the run's test text."""
    from chiaroscuro.training import task_of

    text = task_of(run).windows["test"]
    return str(run.tokenizer.decode(text.tokens[:tokens].astype(int).tolist()))


def show(results: dict[str, Any], as_json: bool) -> None:
    """A report as JSON or as a table."""
    if as_json:
        console.print_json(data=results)
        return
    console.print(tables.runs({str(results.get("recipe", "")): results}))
