"""Time the sides of a case in turn, in one process, so that what else the machine does falls on all of them alike; each
round in another order."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from random import Random
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from chiaroscuro.bench.case import Case
from chiaroscuro.flops import executed_flops

WARM_UP = 2


@dataclass(frozen=True)
class Measured:
    """One case. seconds: per side the median. ratio: of our time to each other side's, round by round: the median and
    the quartiles. flops: executed, per side. planned: the FLOPs that sides should execute, where they can tell.
    peak_bytes: the most memory that a side has allocated at a time beyond its inputs."""

    name: str
    keys: str
    rounds: int
    seconds: dict[str, float]
    ratio: dict[str, tuple[float, float, float]]
    flops: dict[str, float]
    planned: dict[str, float]
    peak_bytes: dict[str, int]
    at_most: dict[str, float]

    @property
    def predicted(self) -> dict[str, float]:
        """Per other side the ratio of times that the FLOPs would give."""
        ours, *others = self.flops
        return {other: self.flops[ours] / self.flops[other] for other in others}

    @property
    def reached(self) -> dict[str, float]:
        """Per other side the share of the speed-up that the FLOPs would give."""
        return {other: self.predicted[other] / self.ratio[other][0] for other in self.predicted}

    @property
    def executed_to_planned(self) -> dict[str, float]:
        """FLOPs, per side that can tell what it should execute."""
        return {side: self.flops[side] / planned for side, planned in self.planned.items()}

    @property
    def met(self) -> bool:
        """Whether every ratio is as low as it should be."""
        return all(self.ratio[other][0] <= bound for other, bound in self.at_most.items())

    def as_dict(self) -> dict[str, Any]:
        told = ("predicted", "reached", "executed_to_planned", "met")
        return asdict(self) | {name: getattr(self, name) for name in told}


def measure(case: Case, rounds: int, enough: float = 0.0) -> Measured:
    """Time so many `rounds` at the least, and more until `enough` seconds have been measured: what is over in
    milliseconds is not told from noise by a few rounds. Raises ValueError when the sides do not agree on what they
    compute: times of wrong results say nothing."""
    try:
        case.check()
    except AssertionError as error:
        raise ValueError(f"not timed, as its sides do not agree: {case.name}: {error}") from error
    sides = case.sides
    ours, *others = sides
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    order = Random(0)  # since what a side leaves in the caches meets the next
    for number in count():
        for name in order.sample(list(sides), len(sides)):
            taken = _seconds(sides[name])
            if number >= WARM_UP:
                seconds[name].append(taken)
        done = len(seconds[ours])
        if done >= rounds and sum(map(sum, seconds.values())) >= enough:
            break
    ratio = {
        other: _quartiles([mine / theirs for mine, theirs in zip(seconds[ours], seconds[other], strict=True)])
        for other in others
    }
    return Measured(
        case.name,
        case.keys,
        done,
        {name: statistics.median(taken) for name, taken in seconds.items()},
        ratio,
        {name: executed_flops(run) for name, run in sides.items()},
        {name: plan() for name, plan in case.planned.items()},
        {name: peak_bytes(run) for name, run in sides.items()},
        case.at_most,
    )


def _seconds(run: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most memory that is allocated at a time while `run()` runs, beyond what was before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or torch's profiler tells of itself on standard error
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    now = most = 0
    for event in results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most
