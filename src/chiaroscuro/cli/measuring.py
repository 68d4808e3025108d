"""Commands behind the claims: study, report, bench."""

from pathlib import Path
from typing import Annotated

import typer

from chiaroscuro import tables
from chiaroscuro.cli.root import AsJson, app, console, given, sources


@app.command(epilog="Example: chiaroscuro study smoke --processes 2")
def study(
    name: Annotated[str, typer.Argument(help="the name of a study")],
    results: Annotated[Path | None, typer.Option(help="where results are kept; default: results/NAME")] = None,
    data: Annotated[str | None, typer.Option(help="other data than the study's own")] = None,
    test_on: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DATA", help="where a text lies that the study tests on; may be repeated"),
    ] = None,
    processes: Annotated[int, typer.Option(help="runs at a time")] = 2,
    as_json: AsJson = False,
) -> None:
    """Run a grid of recipes, learning rates and seeds, going on where it was left, and write its table and figures."""
    from chiaroscuro import studies

    if processes < 1:
        raise ValueError(f"--processes must be at least 1, got {processes}")
    chosen = studies.study_named(name).on(data, sources(test_on))
    places = studies.Places(results or Path("results") / name, Path("runs") / "studies" / name)
    found = studies.run_study(chosen, places, processes)
    table = studies.render(chosen, found, places.results)
    if as_json:
        console.print_json(data={"rows": table})
    else:
        print(studies.markdown(chosen, table))


@app.command(epilog="Example: chiaroscuro report")
def report(
    results: Annotated[Path, typer.Option(help="where the studies keep their results")] = Path("results"),
    page: Annotated[Path, typer.Option(help="the page to write")] = Path("docs/results.md"),
) -> None:
    """Write the page of results: each claim of the paper, how it was tested, the numbers and the verdict; and the table
    and the figures of every study that is finished."""
    from chiaroscuro import studies

    chosen = [study for study in studies.STUDIES.values() if study.name != "smoke"]
    studies.render_finished(chosen, results)  # first, as the page shows the figures that are there
    page.write_text(studies.report(chosen, results, page), encoding="utf-8")
    print(f"written to {page}")


@app.command(epilog="Example: chiaroscuro bench layer --rounds 9")
def bench(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="op, spectral, layer, model, train, decode, compile or chiar")],
    rounds: Annotated[
        int, typer.Option(min=2, help="times that each side is run at least, in turn with the others")
    ] = 9,
    seconds: Annotated[
        float, typer.Option(min=0, help="how long a case is timed at least; up to nine times that while it scatters")
    ] = 20.0,
    lengths: Annotated[
        list[int] | None, typer.Option("--length", help="tokens; may be repeated; default: the sizes of the target")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="sequences at a time")] = 1,
    hidden_size: Annotated[int, typer.Option(help="model width")] = 512,
    layers: Annotated[int, typer.Option(help="number of layers")] = 8,
    heads: Annotated[int, typer.Option(help="attention heads")] = 8,
    plot: Annotated[Path | None, typer.Option(help="write time against the given lengths to this file")] = None,
    out: Annotated[Path | None, typer.Option(help="write the figures to this file, as JSON")] = None,
    as_json: AsJson = False,
) -> None:
    """Time routed attention against full attention and the dense blend, side by side on this machine."""
    import torch

    from chiaroscuro import bench
    from chiaroscuro.progress import tracked
    from chiaroscuro.training import versions, write_json

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    _check_files(plot, out, lengths or [])
    if not lengths and given(context) & {"batch_size", "hidden_size", "layers", "heads"}:
        raise ValueError("sizes go with --length; without it those of the target are timed")
    if target in ("op", "spectral", "layer") and "layers" in given(context):
        raise ValueError(f"--layers is of models, and {target} is a part of one layer or a layer")
    wanted: dict[int, bench.Sizes | None] = {
        length: bench.Sizes(batch_size, length, hidden_size, heads, layers, device, dtype) for length in lengths or ()
    }
    measured = {
        length: [
            bench.measure(case, rounds, seconds)
            for case in tracked(bench.cases(target, sizes, device, dtype), f"timing {target}")
        ]
        for length, sizes in (wanted or {0: None}).items()
    }
    report = {
        "target": target,
        "versions": versions(),
        "cases": [each.as_dict() for group in measured.values() for each in group],
    }
    if out is not None:
        write_json(out, report)
    if plot is not None:
        bench.plot(measured, plot)
    if as_json:
        console.print_json(data=report)
        return
    for each in (each for group in measured.values() for each in group):
        console.print(tables.times(each))


def _check_files(plot: Path | None, out: Path | None, lengths: list[int]) -> None:
    """Raises ValueError, before anything is timed, for files that could not be written afterwards."""
    from matplotlib.backend_bases import FigureCanvasBase

    if plot is not None and len(lengths) < 2:
        raise ValueError("--plot needs --length, more than once")
    for path in (plot, out):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"no folder {path.parent} to write {path.name} into")
    kinds = FigureCanvasBase.get_supported_filetypes()
    if plot is not None and plot.suffix.removeprefix(".").lower() not in ("", *kinds):
        raise ValueError(f"--plot writes {', '.join(kinds)}, not {plot.name}")
