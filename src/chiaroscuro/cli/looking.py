"""Commands that show what a model does: route, tokens, plot, app."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from chiaroscuro import tables
from chiaroscuro.cli.root import AsJson, RunFolder, app, console, free_folder, given, load


@app.command(epilog='Example: chiaroscuro route runs/mine "To be, or not to be" --png routing.png')
def route(
    context: typer.Context,
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
    if "by" in given(context) and html is None:
        raise ValueError("--by is for the page that --html writes")
    routed = analysis.route_text(loaded.model, loaded.tokenizer, text)
    if png is not None:
        analysis.png(routed, png)
    if html is not None:
        html.write_text(analysis.page(routed, f"{run}: where tokens go", by), encoding="utf-8")
    if as_json:
        console.print_json(data=asdict(routed))
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
    from transformers import set_seed

    from chiaroscuro import ChiarForCausalLM, analysis
    from chiaroscuro.progress import tracked
    from chiaroscuro.studies.table import with_error
    from chiaroscuro.training import LanguageModelling, task_of, versions, write_json

    loaded = load(run)
    task = task_of(loaded, data)
    if not isinstance(loaded.model, ChiarForCausalLM) or not isinstance(task, LanguageModelling):
        raise ValueError(f"{run} was trained on task {task.plan.task!r}; tokens needs a model of text")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    test = task.windows["test"].spread(windows)
    try:
        own = task if data is None else task_of(loaded)  # what it was trained and calibrated on
    except ValueError as error:
        raise ValueError(f"tokens counts in the text of the run's training how frequent each is: {error}") from error
    assert isinstance(own, LanguageModelling)
    set_seed(task.plan.seed)
    found = analysis.study_tokens(
        loaded.model,
        task.build(loaded.model.config).eval(),
        analysis.sample(test, loaded.tokenizer, own.tokens["train"]),
        own.calibration_text()[0],
        pairs,
        progress=lambda layers: tracked(layers, "forcing layers"),
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
            print(f"{name.replace('_', ' ')}: {with_error(figure, 4)}")


@app.command(epilog="Example: chiaroscuro plot runs/mine")
def plot(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="folder to write into; default: RUN/figures")] = None,
) -> None:
    """Draw how a run was trained: loss, shares and utilisation entropy by step, entropies against those of noise."""
    from chiaroscuro import analysis

    figures = analysis.figures_of_run(load(run))
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

    for folder in runs or ():
        if not (folder / "config.json").is_file():
            raise ValueError(f"no run folder at {folder}")
    folders, note = (runs, "") if runs else _found_or_trained(room.last_runs(Path("runs")))
    page = room.build(room.Shelf(folders), note)
    address = room.serve(page, host, port)
    print(f"{note} The page: {address} (Ctrl-C ends it)".strip(), flush=True)
    page.block_thread()


def _found_or_trained(found: list[Path]) -> tuple[list[Path], str]:
    """What is shown where no run was given, and what there is to say of it."""
    if found:
        return found, f"Showing the last run found, {found[0]}."
    from chiaroscuro.training import TrainingPlan, prepare, train

    folder = free_folder("demo")
    print("No run given and none found: training a small one, about a minute.")
    plan = TrainingPlan()
    train(plan, prepare(plan), folder)
    return [folder], f"No run was given and none found, so a small model was trained on Shakespeare's plays: {folder}."
