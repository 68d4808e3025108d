"""Several processes that train one model together, as torchrun starts them; one alone is the simplest case."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

V = TypeVar("V")


def ranks() -> PartialState:
    """Which of how many processes this is."""
    return PartialState(cpu=not torch.cuda.is_available())


def on_first(do: Callable[[], V]) -> V:
    """What `do` returns in the first process, in all of them; and what it raises there of what is wrong with the input.
    For work on files that all share."""
    if ranks().num_processes == 1:
        return do()
    outcome: list[Any] = [None, None]
    if ranks().is_main_process:
        try:
            outcome = [do(), None]
        except (ValueError, OSError) as error:
            outcome = [None, error]
    value, wrong = broadcast_object_list(outcome)
    if wrong is not None:
        raise wrong
    return value


def any_of(here: bool) -> bool:
    """Whether it is so in any of the processes."""
    if ranks().num_processes == 1:
        return here
    flag = torch.tensor(int(here), device=ranks().device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)
