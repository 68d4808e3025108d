"""The program itself: how it starts, and what its commands share."""

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from chiaroscuro import tables

if TYPE_CHECKING:
    from chiaroscuro.training import Run

app = typer.Typer(
    help="CHIAR-Former: attention for the tokens that gain from it, something cheaper for the others.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, as train and compare leave it")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]


def main() -> None:
    """Run the command line; what is wrong with the input is told in one line, exit code 2."""
    gc.freeze()  # what has been imported stays: to look through it at the end takes a fifth of `--help`
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


def load(folder: Path) -> "Run":
    from chiaroscuro.training import load_run

    return load_run(folder)


def sources(given: list[str] | None) -> dict[str, str]:
    """By name what was given as NAME=DATA; a name alone is its own source."""
    return {name: source or name for name, _, source in (each.partition("=") for each in given or ())}


def free_folder(name: str) -> Path:
    """runs/NAME-N with the first N that is not taken."""
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder


def show(results: dict[str, Any], as_json: bool) -> None:
    """A report as JSON or as a table."""
    if as_json:
        console.print_json(data=results)
        return
    console.print(tables.runs({str(results.get("recipe", "")): results}))


def given(context: typer.Context) -> set[str]:
    """The options that were written on the command line."""
    origins = {name: context.get_parameter_source(name) for name in context.params}
    # By its name, since newer versions of typer have a click of their own.
    return {name for name, origin in origins.items() if origin is not None and origin.name == "COMMANDLINE"}
