"""Time the sides of a case in turn, in one process, so that what else the machine does falls on all of them alike; each
round in another order."""

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from chiaroscuro.bench.case import Case
from chiaroscuro.flops import executed_flops

WARM_UP = 2
PRECISION = 0.01  # standard error of the median of a ratio, to that median
PATIENCE = 9


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


def measure(case: Case, rounds: int, seconds: float = 0.0) -> Measured:
    """Time so many `rounds` and `seconds` at the least, and up to `PATIENCE` times as many seconds until the median of
    each ratio is known to `PRECISION`: when to stop depends on how the ratios scatter, not on where they lie. Raises
    ValueError when the sides do not agree on what they compute: times of wrong results say nothing."""
    try:
        case.check()
    except AssertionError as error:
        raise ValueError(f"not timed, as its sides do not agree: {case.name}: {error}") from error
    sides = case.sides
    taken, ratio = _in_turn(sides, rounds, seconds)
    return Measured(
        case.name,
        case.keys,
        len(taken[next(iter(sides))]),
        {name: statistics.median(times) for name, times in taken.items()},
        ratio,
        {name: executed_flops(run) for name, run in sides.items()},
        {name: plan() for name, plan in case.planned.items()},
        {name: peak_bytes(run) for name, run in sides.items()},
        case.at_most,
    )


def _in_turn(
    sides: dict[str, Callable[[], Any]], rounds: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, tuple[float, float, float]]]:
    """The seconds that each side took, round by round, and the ratios as in `Measured`. Only every so many `rounds` is
    it looked at whether they are known, which leaves the caches to the sides."""
    ours, *others = sides
    order = Random(0)  # since what a side leaves in the caches meets the next

    def a_round() -> dict[str, float]:
        return {name: _seconds(sides[name]) for name in order.sample(list(sides), len(sides))}

    for _ in range(WARM_UP):
        a_round()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    while True:
        for name, passed in a_round().items():
            taken[name].append(passed)
        done, in_all = len(taken[ours]), sum(map(sum, taken.values()))
        if done % rounds or in_all < seconds:
            continue
        ratio = {
            other: _quartiles([mine / theirs for mine, theirs in zip(taken[ours], taken[other], strict=True)])
            for other in others
        }
        known = all(_standard_error(quartiles, done) <= PRECISION * quartiles[0] for quartiles in ratio.values())
        if known or in_all >= PATIENCE * seconds:
            return taken, ratio


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


def _standard_error(quartiles: tuple[float, float, float], count: int) -> float:
    """Of the median of so many values, were they normally distributed: sqrt(pi / 2) of the standard deviation, which is
    the distance of the quartiles by 1.349, over the root of their number."""
    _, low, high = quartiles
    return math.sqrt(math.pi / 2 / count) * (high - low) / 1.349


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
