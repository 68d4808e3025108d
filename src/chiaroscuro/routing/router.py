"""Routers: from token vectors and their entropy to gates over the operators of a layer.

Shapes: B batch, T tokens, D model channels, O operators.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from transformers import initialization as init

from chiaroscuro.routing.calibration import noise_thresholds


class Router(nn.Module, ABC):
    """Gates over O operators, listed from the cheapest to the dearest.

    hard: each token goes to one operator, so the others need not be run for it.
    learned: the gates carry gradient.
    """

    hard: ClassVar[bool] = True
    learned: ClassVar[bool] = False

    def __init__(self, hidden_size: int, num_operators: int, layer: int = 0):
        super().__init__()
        self.hidden_size = hidden_size
        self.num_operators = num_operators
        self.layer = layer

    @abstractmethod
    def forward(self, x_BTD: Tensor, entropy_BT: Tensor, identity_BT: Tensor) -> Tensor:
        """Gates (B, T, O). `identity_BT` holds an integer per token, the same whenever the model sees that token at
        that position, for routers that choose without looking at the vector."""

    def reset_parameters(self) -> None:
        """Set parameters and buffers held by this module itself to their starting values."""


class ThresholdRouter(Router):
    """Entropy against two thresholds; nothing is learned (paper, "Theorem 1").

    Three operators: below `low` the first, above `high` the last, between them the second. Two operators: above the
        mean of the thresholds the second. Raises ValueError for other numbers of operators and for thresholds out of
        order.
    """

    def __init__(
        self, hidden_size: int, num_operators: int, layer: int = 0, low: float | None = None, high: float | None = None
    ):
        super().__init__(hidden_size, num_operators, layer)
        if num_operators not in (2, 3):
            raise ValueError(f"the threshold router chooses between two or three operators, not {num_operators}")
        noise_low, noise_high = noise_thresholds(hidden_size)
        self.start = (noise_low if low is None else low, noise_high if high is None else high)
        check_thresholds(*self.start)
        self.thresholds: Tensor
        self.register_buffer("thresholds", torch.empty(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.copy_(self.thresholds, torch.tensor(self.start, device="cpu"))

    @torch.no_grad()
    def set_thresholds(self, low: float, high: float) -> None:
        check_thresholds(low, high)
        self.thresholds.copy_(self.thresholds.new_tensor((low, high)))

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor, identity_BT: Tensor) -> Tensor:
        low, high = self.thresholds.to(entropy_BT.dtype)
        if self.num_operators == 2:
            choice_BT = (entropy_BT > (low + high) / 2).long()
        else:
            choice_BT = (entropy_BT >= low).long() + (entropy_BT > high).long()
        return one_hot(choice_BT, self.num_operators).to(x_BTD.dtype)


class SoftRouter(Router):
    """gates = softmax(Linear([x; H])); the outputs of all operators are blended (paper, "soft")."""

    hard = False
    learned = True

    def __init__(self, hidden_size: int, num_operators: int, layer: int = 0):
        super().__init__(hidden_size, num_operators, layer)
        self.score = nn.Linear(hidden_size + 1, num_operators)

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor, identity_BT: Tensor) -> Tensor:
        features = torch.cat((x_BTD, entropy_BT[..., None].to(x_BTD.dtype)), dim=-1)
        return self.score(features).softmax(-1)


class HardRouter(SoftRouter):
    """The largest gate of the soft router, with a straight-through gradient (paper, "hard").

    The forward gate of the chosen operator is exactly one and its gradient is that of the softmax probability. The
    gates of
    the others are zero and carry no gradient: theirs would be the product with outputs of operators that sparse
        dispatch does not compute, and a model must learn the same whichever way it is run.
    """

    hard = True

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor, identity_BT: Tensor) -> Tensor:
        soft = super().forward(x_BTD, entropy_BT, identity_BT)
        chosen = one_hot(soft.argmax(-1), self.num_operators).to(soft.dtype)
        return chosen * (1 + soft - soft.detach())


class RandomRouter(Router):
    """Each operator with the same probability, by a hash of token, position and layer: the control that knows nothing
    of the token's vector, and still gives the same answer through the cache as in a full pass."""

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor, identity_BT: Tensor) -> Tensor:
        hashed = _mix_bits(identity_BT * 0x9E3779B1 + self.layer * 0x85EBCA6B + 1)
        choice_BT = (hashed & 0x7FFFFFFF) * self.num_operators // 2**31
        return one_hot(choice_BT, self.num_operators).to(x_BTD.dtype)


def _mix_bits(x: Tensor) -> Tensor:
    """Spread every bit of an int64 over the low 31, by two rounds of multiply and shift."""
    for factor in (0x45D9F3B, 0x119DE1F3):
        x = ((x ^ ((x >> 16) & 0xFFFFFFFF)) * factor) & 0x7FFFFFFFFFFFFFFF
    return x ^ (x >> 16)


ROUTERS: dict[str, type[Router]] = {
    "threshold": ThresholdRouter,
    "soft": SoftRouter,
    "hard": HardRouter,
    "random": RandomRouter,
}


def router_class(name: str) -> type[Router]:
    """Raises ValueError listing the known routers."""
    if name not in ROUTERS:
        raise ValueError(f"unknown router {name!r}; known routers: {', '.join(sorted(ROUTERS))}")
    return ROUTERS[name]


def check_thresholds(low: float, high: float) -> None:
    """Raises ValueError unless 0 <= low <= high <= 1."""
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"thresholds must satisfy 0 <= tau_low <= tau_high <= 1, got {low} and {high}")
