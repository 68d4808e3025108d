"""What a case of the bench is, and what all cases share.

Half of the tokens of every row are routed to attention, exactly and at random; beside it stands routing by the
router of the recipe, its thresholds, if it has some, from the same input. All sides have the same width.

Shapes: B batch, T tokens, N heads, H head channels, D model channels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from chiaroscuro.mixers import NO_CONTEXT, Context
from chiaroscuro.routing import Router, ThresholdRouter

Keys = Literal["all", "routed"]
KEYS: tuple[Keys, ...] = ("all", "routed")
OURS, ENTROPY, BLEND, FULL = "ours", "ours, routed by entropy", "dense blend", "full attention"
RECURRENCE = "ours, routed by recurrence"
EAGER, DOUBLE = "ours, not compiled", "FFTs of length 2d"
HALF, OWN = "half", "own"  # who decides: a given half, or the router of the recipe


@dataclass(frozen=True)
class Sizes:
    batch: int
    length: int
    width: int
    heads: int
    layers: int = 1
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name in ("batch", "length", "width", "heads", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.length < 2:
            raise ValueError("a length of 1 has no half that could be routed")
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"a width of {self.width} does not divide into {self.heads} heads of an even size")


@dataclass(frozen=True)
class Case:
    """keys: whom a routed token sees. sides: what is run, ours first. check: raises AssertionError when ours computes
    something else than it should. at_most: per other side the ratio of times that we mean to reach. planned: the FLOPs
    that sides should execute; none for those that give a mask to a kernel, which then computes every pair."""

    name: str
    keys: Keys
    sides: dict[str, Callable[[], Any]]
    check: Callable[[], None]
    at_most: dict[str, float] = field(default_factory=dict)
    planned: dict[str, Callable[[], float]] = field(default_factory=dict)


def half(batch: int, length: int, device: str = "cpu") -> Tensor:
    """(B, T): True for exactly half of the tokens of each row, at random."""
    order = torch.rand(batch, length, generator=torch.Generator().manual_seed(0)).argsort(1)
    return (order < length // 2).to(device)


def close(ours: Tensor, expected: Tensor) -> None:
    """Raises AssertionError unless `ours` is `expected` to the precision of its type."""
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10}.get(ours.dtype, 2e-2)
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)


class HalfRouter(Router):
    """Sends half of the tokens, those of a given mask, to the second operator; those from `start` on are asked for.
    The layer's own router scores them all the same, so that the time has in it what a decision costs."""

    def __init__(self, own: ThresholdRouter, half_BT: Tensor, dtype: torch.dtype):
        super().__init__(own.hidden_size, 2)
        self.own = own
        # Of the class, for all other routers.
        self.reads_entropy = own.reads_entropy  # type: ignore[misc]
        self.reads_recency = own.reads_recency  # type: ignore[misc]
        self.gates_BTO = one_hot(half_BT.long(), 2).to(dtype)
        self.start = 0

    def flops(self, tokens: float) -> float:
        return self.own.flops(tokens)

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        self.own.score(x_BTD, entropy_BT, context)
        return self.gates_BTO[:, self.start : self.start + x_BTD.shape[1]]


forward_only = torch.no_grad()  # makes of a call the same without gradients


def shown(sizes: Sizes, keys: Keys) -> str:
    """Sizes and keys, as the names of cases say them."""
    layers = f", {sizes.layers} layers" if sizes.layers > 1 else ""
    return f"B {sizes.batch}, T {sizes.length}, d {sizes.width}, {sizes.heads} heads{layers}, {keys} keys"
