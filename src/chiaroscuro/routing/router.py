"""Routers: from token vectors and their entropy to gates over the operators of a layer; the paper's own, by thresholds.

Shapes: B batch, T tokens, D model channels, O operators.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from transformers import initialization as init

from chiaroscuro.mixers import NO_CONTEXT, Context
from chiaroscuro.mixers.registry import Registry
from chiaroscuro.routing.thresholds import between, check_share, check_thresholds, noise_thresholds


class Router(nn.Module, ABC):
    """Gates over O operators, two at the least, the cheapest first. Raises ValueError for fewer or
    more than it can choose between.

    hard: each token goes to one operator, so the others need not be run for it.
    learned: the gates carry gradient. explores: in training some tokens go to several operators.
    zero_or_one: outside of training its gates are zero and one, so that no output need be multiplied by one.
    reads_entropy: it is given the entropy of the tokens, which costs a transform of all of them.
    reads_recency: it wants to know when tokens last occurred (`Context.recency_BT`).
    most_operators: how many it can choose between, None where there is no bound.
    """

    hard: ClassVar[bool] = True
    learned: ClassVar[bool] = False
    explores: ClassVar[bool] = False
    zero_or_one: ClassVar[bool] = False
    reads_entropy: ClassVar[bool] = False
    reads_recency: ClassVar[bool] = False
    most_operators: ClassVar[int | None] = None

    def __init__(self, hidden_size: int, num_operators: int, layer: int = 0):
        super().__init__()
        if not 2 <= num_operators <= (self.most_operators or num_operators):
            raise ValueError(
                f"{type(self).__name__} takes 2 to {self.most_operators or 'any number of'} operators, not "
                f"{num_operators}"
            )
        self.hidden_size = hidden_size
        self.num_operators = num_operators
        self.layer = layer
        self.forced_BT: Tensor | None = None  # the operators that tokens go to whatever is decided; negative: none

    @property
    def shares(self) -> tuple[float, ...]:
        """What part of the tokens each operator may be expected to get: each the same, where nothing says otherwise."""
        return (1 / self.num_operators,) * self.num_operators

    @abstractmethod
    def forward(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        """Gates (B, T, O), from the vectors, their spectral entropy (B, T), and what `context` says of the tokens. A
        router that does not read the entropy may get None for it."""

    def gates(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context) -> Tensor:
        """Gates (B, T, O) as decided, but for tokens that are forced to an operator (`chiaroscuro.routing.forced`)."""
        gates_BTO: Tensor = self(x_BTD, entropy_BT, context)
        if self.forced_BT is None:
            return gates_BTO
        if self.forced_BT.shape != gates_BTO.shape[:2]:
            raise ValueError(
                f"tokens {tuple(gates_BTO.shape[:2])} cannot be forced by a choice of {tuple(self.forced_BT.shape)}"
            )
        forced_BTO = one_hot(self.forced_BT.clamp_min(0), self.num_operators).to(gates_BTO)
        return forced_BTO.where((self.forced_BT >= 0)[..., None], gates_BTO)

    def flops(self, tokens: float) -> float:
        """Forward FLOPs of deciding for so many tokens, given their entropy."""
        return 0.0

    def reset_parameters(self) -> None:
        """Set parameters and buffers held by this module itself to their starting values."""


R = TypeVar("R", bound=type[Router])
_ROUTERS: Registry[Router] = Registry("router")


def register_router(name: str) -> Callable[[R], R]:
    """Class decorator: make a router available to configurations under `name`, to be built from hidden size, number of
    operators and index of the layer, and of a `BudgetRouter` from `routed_share` as well. Raises ValueError when the
    name is taken by another class."""
    return _ROUTERS.register(name)


def router_names() -> list[str]:
    return _ROUTERS.names()


def router_class(name: str) -> type[Router]:
    """The router registered under `name`. Raises ValueError listing the known names."""
    return _ROUTERS[name]


class BudgetRouter(Router):
    """Of two operators the second gets `share` of the tokens; without a share all get the same, or what it takes is up
    to the text (`halves`).

    dense: how much of the way from all tokens to that share is still to go, which is none but in training that started
        with all of them (`chiaroscuro.training.DenseStart`).

    Raises ValueError for a share outside [0, 1], and for one with another number of operators.
    """

    zero_or_one = True
    halves: ClassVar[bool] = True

    def __init__(self, hidden_size: int, num_operators: int, layer: int = 0, share: float | None = None):
        super().__init__(hidden_size, num_operators, layer)
        if share is not None:
            check_share(share)
            if num_operators != 2:
                raise ValueError(f"a share parts the tokens between two operators, not {num_operators}")
        self.share = share
        self.dense = 0.0

    @property
    def keeps_share(self) -> bool:
        """Whether it is said how many tokens an operator gets."""
        return self.halves or self.share is not None

    @property
    def shares(self) -> tuple[float, ...]:
        *others, last = super().shares if self.share is None else (1 - self.share, self.share)
        return (*((1 - self.dense) * other for other in others), last + self.dense * (1 - last))


@register_router("threshold")
class ThresholdRouter(BudgetRouter):
    """Entropy against two thresholds; nothing is learned (paper, "Theorem 1").

    Three operators: below `low` the first, above `high` the last, between them the second. Two operators: above the
        mean of the thresholds the second. `calibrate` sets the thresholds from data. Raises ValueError for other
        numbers of operators and for thresholds out of order.
    """

    reads_entropy = True
    most_operators = 3

    def __init__(
        self,
        hidden_size: int,
        num_operators: int,
        layer: int = 0,
        share: float | None = None,
        low: float | None = None,
        high: float | None = None,
    ):
        super().__init__(hidden_size, num_operators, layer, share)
        noise_low, noise_high = noise_thresholds(hidden_size)
        self.start = (noise_low if low is None else low, noise_high if high is None else high)
        self.share_at_hand: float | None = None  # of the tokens at hand, that thresholds are put below (`at_share`)
        self.seen: tuple[Tensor, Tensor | None, Context] | None = None  # what was scored in the last pass in training
        check_thresholds(*self.start)
        self.thresholds: Tensor
        self.register_buffer("thresholds", torch.tensor(self.start, dtype=torch.float32))

    def reset_parameters(self) -> None:
        init.copy_(self.thresholds, torch.tensor(self.start, dtype=torch.float64, device="cpu"))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """A model in half precision keeps its thresholds in float32: theirs would be rounded by as much as entropies
        differ."""
        before = self.thresholds
        super()._apply(fn, recurse)
        if self.thresholds.dtype in (torch.bfloat16, torch.float16):
            self.thresholds = before.to(self.thresholds.device, torch.float32)
        return self

    @torch.no_grad()
    def set_thresholds(self, low: float, high: float) -> None:
        check_thresholds(low, high)
        self.thresholds.copy_(self.thresholds.new_tensor((low, high)))

    def gates(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context) -> Tensor:
        """As of any router; in training what is scored is kept, for `chiaroscuro.routing.follow`."""
        if self.training and torch.is_grad_enabled() and self.keeps_share:
            entropy = None if entropy_BT is None else entropy_BT.detach()
            self.seen = x_BTD.detach(), entropy, context.of_the_tokens()
        return super().gates(x_BTD, entropy_BT, context)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was scored last, which belongs to a step and not to the model."""
        return self.__dict__ | {"seen": None}

    @torch.no_grad()
    def scores_seen(self) -> Tensor | None:
        """The scores, by the weights of now, of the tokens in the last forward pass in training, padding left out; None
        where there was none."""
        if self.seen is None:
            return None
        score_BT, valid_BT = self.score(*self.seen), self.seen[-1].valid_BT
        return score_BT.flatten() if valid_BT is None else score_BT[valid_BT.bool()]

    @torch.no_grad()
    def part(self, score_N: Tensor) -> tuple[float, float]:
        """Set the thresholds to the quantiles of scores that are typical, and return them."""
        below, above = self.quantiles
        low = between(score_N, below)
        high = low if above == below else between(score_N, above)  # sorting them once, in each step of training
        self.set_thresholds(low, high)
        return low, high

    @property
    def quantiles(self) -> tuple[float, float]:
        """Where calibration puts the thresholds: the paper's thirds for three operators; for two, which the mean of the
        thresholds parts, both where they leave `share` above them, or half of the tokens."""
        above = self.shares[-1]
        return (1 / 3, 2 / 3) if self.num_operators == 3 else (1 - above, 1 - above)

    def score(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        """What is held against the thresholds, (B, T)."""
        assert entropy_BT is not None
        return entropy_BT

    def choose(self, score_BT: Tensor, context: Context) -> Tensor:
        """Index of each token's operator, (B, T)."""
        if self.share_at_hand is not None:
            valid_BT = context.valid_BT
            at_hand = score_BT.flatten() if valid_BT is None else score_BT[valid_BT.bool()]
            place = between(at_hand, 1.0 - self.share_at_hand)
            self.set_thresholds(place, place)
        low, high = self.thresholds.to(score_BT.dtype)
        if self.num_operators == 2:
            return (score_BT > (low + high) / 2).long()
        return (score_BT >= low).long() + (score_BT > high).long()

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        choice_BT = self.choose(self.score(x_BTD, entropy_BT, context), context)
        return one_hot(choice_BT, self.num_operators).to(x_BTD.dtype)


def threshold_routers(model: nn.Module) -> list[ThresholdRouter]:
    """The routers of a model that decide by thresholds."""
    return [module for module in model.modules() if isinstance(module, ThresholdRouter)]
