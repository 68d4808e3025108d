"""Routers: from token vectors and their entropy to gates over the operators of a layer.

Shapes: B batch, T tokens, D model channels, O operators.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot
from transformers import initialization as init

from chiaroscuro.mixers import NO_CONTEXT, Context
from chiaroscuro.ops.accelerator import most_precise, without_autocast
from chiaroscuro.routing.thresholds import between, check_share, check_thresholds, noise_thresholds


class Router(nn.Module, ABC):
    """Gates over O operators, two at the least, the cheapest first. Raises ValueError for fewer or
    more than it can choose between.

    hard: each token goes to one operator, so the others need not be run for it.
    learned: the gates carry gradient. explores: in training some tokens go to several operators.
    reads_entropy: it is given the entropy of the tokens, which costs a transform of all of them.
    most_operators: how many it can choose between, None where there is no bound.
    """

    hard: ClassVar[bool] = True
    learned: ClassVar[bool] = False
    explores: ClassVar[bool] = False
    reads_entropy: ClassVar[bool] = False
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
        forced_BTO = one_hot(self.forced_BT.clamp_min(0), self.num_operators).to(gates_BTO)
        return forced_BTO.where((self.forced_BT >= 0)[..., None], gates_BTO)

    def flops(self, tokens: float) -> float:
        """Forward FLOPs of deciding for so many tokens, given their entropy."""
        return 0.0

    def reset_parameters(self) -> None:
        """Set parameters and buffers held by this module itself to their starting values."""


class BudgetRouter(Router):
    """Of two operators the second gets `share` of the tokens; without a share all get the same.

    Raises ValueError for a share outside [0, 1], and for one with another number of operators.
    """

    def __init__(self, hidden_size: int, num_operators: int, layer: int = 0, share: float | None = None):
        super().__init__(hidden_size, num_operators, layer)
        if share is not None:
            check_share(share)
            if num_operators != 2:
                raise ValueError(f"a share parts the tokens between two operators, not {num_operators}")
        self.share = share

    @property
    def shares(self) -> tuple[float, ...]:
        return super().shares if self.share is None else (1 - self.share, self.share)


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
        check_thresholds(*self.start)
        self.thresholds: Tensor
        self.register_buffer("thresholds", torch.empty(2, dtype=torch.float32))
        self.reset_parameters()

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


class _Precise(nn.Linear):
    """In float32 at least: in half precision scores, and entropies, would fall together. Called as a module, so that
    its weight is there where weights are kept elsewhere until they are needed."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        precision = torch.promote_types(x_BTD.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(precision)
        with without_autocast(x_BTD.device):
            return linear(x_BTD.to(precision), self.weight.to(precision), bias)


class LearnedRouter(ThresholdRouter):
    """A learned score, Linear(x), against the thresholds: the budget of the threshold router without its entropy.

    With two operators only. The gates carry the straight-through gradient of the probability sigmoid(score -
    threshold).
    """

    learned = True
    reads_entropy = False
    most_operators = 2

    def __init__(self, hidden_size: int, num_operators: int, layer: int = 0, share: float | None = None):
        super().__init__(hidden_size, num_operators, layer, share, low=0.0, high=0.0)
        self.linear = _Precise(hidden_size, 1, bias=False)

    def flops(self, tokens: float) -> float:
        return 2.0 * tokens * self.hidden_size

    def score(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        return cast(Tensor, self.linear(x_BTD)).squeeze(-1)

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        score_BT = self.score(x_BTD, entropy_BT)
        choice_BT = self.choose(score_BT, context)
        dear_BT = (score_BT - self.thresholds.to(score_BT.dtype).mean()).sigmoid()
        return straight_through(torch.stack((1 - dear_BT, dear_BT), dim=-1), choice_BT)


class BenefitRouter(LearnedRouter):
    """A score, Linear(x), that learns to predict how much less the loss is for the second operator in the place of the
    first, against the thresholds.

    In training a part of the tokens, drawn at random, is explored: a token gets both operators, with gates of 1 - a and
    a, where a is uniform in [0, 1]. The derivative of the loss by a is on average, over a, the whole difference between
    the two; the score is fitted to it by least squares. At a gate of one, where a straight-through gradient is taken,
    the derivative says what still more of the operator would gain, which for a trained one is nothing on average over
    tokens.
    """

    explores = True
    EXPLORED = 1 / 8  # of the tokens

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        score_BT = self.score(x_BTD.detach(), entropy_BT)
        dear_BT = self.choose(score_BT, context).to(x_BTD.dtype)
        if self.training:
            dear_BT, explored_BT = _explored(dear_BT, self.EXPLORED, context)
            dear_BT = _FittedToGain.apply(dear_BT, score_BT, explored_BT)
        return torch.stack((1 - dear_BT, dear_BT), dim=-1)


def _explored(dear_BT: Tensor, part: float, context: Context) -> tuple[Tensor, Tensor]:
    """Gates of the second operator, those of a `part` of the tokens drawn anew from [0, 1], and which tokens these are:
    any but padding."""
    explored_BT = torch.rand_like(dear_BT) < part
    if context.valid_BT is not None:
        explored_BT = explored_BT & context.valid_BT.bool()
    return torch.where(explored_BT, torch.rand_like(dear_BT), dear_BT), explored_BT


class _FittedToGain(torch.autograd.Function):
    """The gates as they are. In the backward pass the gradient of the score of an explored token is by how much it
    exceeds the gain, which is the negative derivative of the loss by the gate. Scores are in units of the root mean
    square of the gains, so that they do not follow the scale of the loss; their gradient does, as all others do."""

    @staticmethod
    def forward(gate_BT: Tensor, score_BT: Tensor, explored_BT: Tensor) -> Tensor:
        return gate_BT.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient_BT: Tensor) -> tuple[None, Tensor, None]:
        score_BT, explored_BT = ctx.saved_tensors
        gain_BT = -gradient_BT.to(score_BT.dtype) * explored_BT
        unit = (gain_BT.square().sum() / explored_BT.sum().clamp_min(1)).sqrt()
        return None, unit * score_BT * explored_BT - gain_BT, None


class SoftRouter(Router):
    """gates = softmax(Linear([x; H])); the outputs of all operators are blended (paper, "soft")."""

    hard = False
    learned = True
    reads_entropy = True

    def __init__(self, hidden_size: int, num_operators: int, layer: int = 0):
        super().__init__(hidden_size, num_operators, layer)
        self.linear = _Precise(hidden_size + 1, num_operators)

    def flops(self, tokens: float) -> float:
        return 2.0 * tokens * (self.hidden_size + 1) * self.num_operators

    def probabilities(self, x_BTD: Tensor, entropy_BT: Tensor | None) -> Tensor:
        """(B, T, O), in float32 at least."""
        assert entropy_BT is not None
        precision = torch.promote_types(x_BTD.dtype, torch.float32)
        features = torch.cat((x_BTD.to(precision), entropy_BT[..., None].to(precision)), dim=-1)
        return cast(Tensor, self.linear(features)).softmax(-1)

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        return self.probabilities(x_BTD, entropy_BT).to(x_BTD.dtype)


class HardRouter(SoftRouter):
    """The largest gate of the soft router, with a straight-through gradient (paper, "hard")."""

    hard = True

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        soft = self.probabilities(x_BTD, entropy_BT)
        return straight_through(soft, soft.argmax(-1)).to(x_BTD.dtype)


def straight_through(probability_BTO: Tensor, choice_BT: Tensor) -> Tensor:
    """Gates that are one for the chosen operator, with the gradient of its probability.

    The gates of the others are zero and carry no gradient: theirs would be the product with outputs of operators that
    sparse dispatch does not compute, and a model must learn the same whichever way it is run.
    """
    chosen = one_hot(choice_BT, probability_BTO.shape[-1]).to(probability_BTO.dtype)
    return chosen * (1 + (probability_BTO - probability_BTO.detach()))


class RandomRouter(BudgetRouter):
    """Each operator with the probability of its share, by a hash of token (where its id is known), position and layer:
    the control that knows nothing of the token's vector, and still gives the same answer through the cache as in a full
    pass."""

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        mixed = _positions(x_BTD, context) * 0x9E3779B1 + _of_layer(self.layer)
        if context.ids_BT is not None:
            mixed = mixed + _of_ids(context.ids_BT)
        hashed = _mix_bits(mixed) & 0x7FFFFFFF
        if self.share is None:
            choice_BT = hashed * self.num_operators // 2**31
        else:
            choice_BT = (hashed < self.share * 2**31).long()
        return one_hot(choice_BT, self.num_operators).to(x_BTD.dtype)


class RandomExploredRouter(RandomRouter):
    """The random router, exploring in training as `BenefitRouter` does and learning nothing from it: the control for
    what exploring does for a model by itself. With two operators only."""

    explores = True
    most_operators = 2

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        gates_BTO = super().forward(x_BTD, entropy_BT, context)
        if not self.training:
            return gates_BTO
        dear_BT, _ = _explored(gates_BTO[..., 1], BenefitRouter.EXPLORED, context)
        return torch.stack((1 - dear_BT, dear_BT), dim=-1)


class HashRouter(ThresholdRouter):
    """A hash of the token's id and the layer against the thresholds (S. Roller et al., "Hash Layers for Large Sparse
    Models", 2021): the control that knows nothing of a token but which one it is, and sends it the same way wherever it
    stands. Raises ValueError where ids are not known."""

    reads_entropy = False

    def __init__(self, hidden_size: int, num_operators: int, layer: int = 0, share: float | None = None):
        super().__init__(hidden_size, num_operators, layer, share)
        self.start = self.quantiles  # of hashes, which are spread evenly over [0, 1)
        self.reset_parameters()

    def score(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        if context.ids_BT is None:
            raise ValueError("router 'hash' goes by the ids of tokens: give input_ids")
        return (_mix_bits(_of_ids(context.ids_BT) + _of_layer(self.layer)) & 0xFFFFFF).float() / 2**24


class InterleavedRouter(BudgetRouter):
    """Each operator in turn, by position, and in the next layer one further: the control that spreads the same share as
    evenly as can be."""

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        positions_BT = _positions(x_BTD, context) + self.layer
        if self.share is None:
            choice_BT = positions_BT % self.num_operators
        else:
            seen_BT = positions_BT.to(most_precise(positions_BT.device))
            choice_BT = (((seen_BT + 1) * self.share).floor() - (seen_BT * self.share).floor()).long()
        return one_hot(choice_BT, self.num_operators).to(x_BTD.dtype)


def _positions(x_BTD: Tensor, context: Context) -> Tensor:
    B, T = x_BTD.shape[:2]
    if context.positions_BT is None:
        return torch.arange(T, device=x_BTD.device).expand(B, T)
    return context.positions_BT.long().expand(B, T)


def _of_layer(layer: int) -> int:
    return layer * 0x85EBCA6B + 1


def _of_ids(ids_BT: Tensor) -> Tensor:
    return ids_BT.long() * 0xC2B2AE35


def _mix_bits(x: Tensor) -> Tensor:
    """Spread every bit of an int64 over the low 31, by two rounds of multiply and shift."""
    for factor in (0x45D9F3B, 0x119DE1F3):
        x = ((x ^ ((x >> 16) & 0xFFFFFFFF)) * factor) & 0x7FFFFFFFFFFFFFFF
    return x ^ (x >> 16)


ROUTERS: dict[str, type[Router]] = {
    "threshold": ThresholdRouter,
    "soft": SoftRouter,
    "hard": HardRouter,
    "learned": LearnedRouter,
    "benefit": BenefitRouter,
    "random": RandomRouter,
    "random_explored": RandomExploredRouter,
    "hash": HashRouter,
    "interleaved": InterleavedRouter,
}


def router_class(name: str) -> type[Router]:
    """Raises ValueError listing the known routers."""
    if name not in ROUTERS:
        raise ValueError(f"unknown router {name!r}; known routers: {', '.join(sorted(ROUTERS))}")
    return ROUTERS[name]
