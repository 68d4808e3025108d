"""How far a long piece of work is, on standard error, so that standard output holds results only."""

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, track

T = TypeVar("T")
TERMINAL = Console(stderr=True)


def tracked(items: Iterable[T], description: str, show: bool = True) -> Iterable[T]:
    """The items one by one, with a bar that goes when they are through."""
    return track(items, description, transient=True, console=TERMINAL, disable=not show)


def bar(*columns: ProgressColumn, show: bool = True) -> Progress:
    """A bar that stays: description, bar, and what `columns` say behind it."""
    return Progress(TextColumn("{task.description}"), BarColumn(), *columns, console=TERMINAL, disable=not show)
