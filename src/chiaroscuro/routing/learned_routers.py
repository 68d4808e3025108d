"""Routers that learn: from the gradient of their gates, or from what the second operator gains at tokens that are
explored.

Shapes: B batch, T tokens, D model channels, O operators.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot

from chiaroscuro.mixers import NO_CONTEXT, Context
from chiaroscuro.mixers.flops import linear_flops
from chiaroscuro.ops.accelerator import without_autocast
from chiaroscuro.routing.router import Router, ThresholdRouter, register_router

EXPLORED = 1 / 8  # of the tokens


class _Precise(nn.Linear):
    """In float32 at least: in half precision scores, and entropies, would fall together. Called as a module, so that
    its weight is there where weights are kept elsewhere until they are needed, and put together where it is called
    between two passes and processes hold a part each."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        precision = torch.promote_types(x_BTD.dtype, torch.float32)
        bias = None if self.bias is None else _whole(self.bias).to(precision)
        with without_autocast(x_BTD.device):
            return linear(x_BTD.to(precision), _whole(self.weight).to(precision), bias)


def _whole(weight: Tensor) -> Tensor:
    """A weight of which each process holds a part (a DTensor), as all hold it together."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


@register_router("learned")
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
        return linear_flops(tokens, self.hidden_size, 1)

    def score(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        return cast(Tensor, self.linear(x_BTD)).squeeze(-1)

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        score_BT = self.score(x_BTD, entropy_BT, context)
        choice_BT = self.choose(score_BT, context)
        second_BT = (score_BT - self.thresholds.to(score_BT.dtype).mean()).sigmoid()
        return straight_through(torch.stack((1 - second_BT, second_BT), dim=-1), choice_BT).to(x_BTD.dtype)


@register_router("benefit")
class BenefitRouter(LearnedRouter):
    """A score, Linear(x), that learns to predict how much less the loss is for the second operator in the place of the
    first, against the thresholds.

    In training a part of the tokens, drawn at random, is explored: a token gets both operators, with gates of 1 - a and
    a, where a is uniform in [0, 1]. The derivative of the loss by a is on average, over a, the whole difference between
    the two, as far as later layers choose alike; the score is fitted to it by least squares. At a gate of one, where a
    straight-through gradient is taken, the derivative says what still more of the operator would gain, which for a
    trained one is nothing on average over tokens.
    """

    explores = True

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        score_BT = self.score(x_BTD.detach(), entropy_BT, context)
        second_BT = self.choose(score_BT, context).to(x_BTD.dtype)
        if self.training:
            second_BT, explored_BT = explored(second_BT, context)
            second_BT = _FittedToGain.apply(second_BT, score_BT, explored_BT)
        return torch.stack((1 - second_BT, second_BT), dim=-1)


def explored(second_BT: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Gates of the second operator, those of an eighth of the tokens drawn anew from [0, 1], and which tokens these
    are: any but padding. A drawn gate is neither end itself, also as half precision rounds it: an operator with a gate
    of zero is not run, and nothing would be found out about it."""
    precise_BT = second_BT.to(torch.promote_types(second_BT.dtype, torch.float32))
    explored_BT = torch.rand_like(precise_BT) < EXPLORED
    if context.valid_BT is not None:
        explored_BT = explored_BT & context.valid_BT.bool()
    end = torch.finfo(second_BT.dtype).eps
    drawn_BT = torch.rand_like(precise_BT).clamp(end, 1 - end).to(second_BT.dtype)
    return torch.where(explored_BT, drawn_BT, second_BT), explored_BT


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


@register_router("soft")
class SoftRouter(Router):
    """gates = softmax(Linear([x; H])); the outputs of all operators are blended (paper, "soft")."""

    hard = False
    learned = True
    reads_entropy = True

    def __init__(self, hidden_size: int, num_operators: int, layer: int = 0):
        super().__init__(hidden_size, num_operators, layer)
        self.linear = _Precise(hidden_size + 1, num_operators)

    def flops(self, tokens: float) -> float:
        return linear_flops(tokens, self.hidden_size + 1, self.num_operators)

    def probabilities(self, x_BTD: Tensor, entropy_BT: Tensor | None) -> Tensor:
        """(B, T, O), in float32 at least."""
        assert entropy_BT is not None
        precision = torch.promote_types(x_BTD.dtype, torch.float32)
        features = torch.cat((x_BTD.to(precision), entropy_BT[..., None].to(precision)), dim=-1)
        return cast(Tensor, self.linear(features)).softmax(-1)

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        return self.probabilities(x_BTD, entropy_BT).to(x_BTD.dtype)


@register_router("hard")
class HardRouter(SoftRouter):
    """The largest gate of the soft router, with a straight-through gradient (paper, "hard")."""

    hard = True
    zero_or_one = True

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
