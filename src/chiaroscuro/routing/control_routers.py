"""Routers that know nothing of a token's vector: controls that the others are held against.

Shapes: B batch, T tokens, D model channels, O operators.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import initialization as init

from chiaroscuro.mixers import NO_CONTEXT, Context
from chiaroscuro.ops.accelerator import most_precise
from chiaroscuro.routing.learned_routers import explored
from chiaroscuro.routing.router import BudgetRouter, ThresholdRouter, register_router


@register_router("random")
class RandomRouter(BudgetRouter):
    """Each operator with the probability of its share, by a hash of token (where its id is known), position and layer:
    the control that knows nothing of the token's vector, and still gives the same answer through the cache as in a full
    pass."""

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        mixed = _positions(x_BTD, context) * 0x9E3779B1 + _of_layer(self.layer)
        if context.ids_BT is not None:
            mixed = mixed + _of_ids(context.ids_BT)
        hashed = _mix_bits(mixed) & 0x7FFFFFFF
        if self.num_operators > 2:
            choice_BT = hashed * self.num_operators // 2**31
        else:
            choice_BT = (hashed < math.ceil(self.shares[-1] * 2**31)).long()
        return one_hot(choice_BT, self.num_operators).to(x_BTD.dtype)


@register_router("random_explored")
class RandomExploredRouter(RandomRouter):
    """The random router, exploring in training as `BenefitRouter` does and learning nothing from it: the control for
    what exploring does for a model by itself. With two operators only."""

    explores = True
    most_operators = 2

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        gates_BTO = super().forward(x_BTD, entropy_BT, context)
        if not self.training:
            return gates_BTO
        second_BT, _ = explored(gates_BTO[..., 1], context)
        return torch.stack((1 - second_BT, second_BT), dim=-1)


@register_router("hash")
class HashRouter(ThresholdRouter):
    """A hash of the token's id and the layer against the thresholds (S. Roller et al., "Hash Layers for Large Sparse
    Models", 2021): the control that knows nothing of a token but which one it is, and sends it the same way wherever it
    stands. Which way is drawn when a model is made. Raises ValueError where ids are not known."""

    reads_entropy = False

    def __init__(self, hidden_size: int, num_operators: int, layer: int = 0, share: float | None = None):
        super().__init__(hidden_size, num_operators, layer, share)
        self.start = self.quantiles  # of hashes, which are spread evenly over [0, 1)
        self.salt: Tensor
        self.register_buffer("salt", torch.empty((), dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        init.copy_(self.salt, torch.randint(2**31, (), device="cpu"))

    def score(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        if context.ids_BT is None:
            raise ValueError("router 'hash' goes by the ids of tokens: give input_ids")
        return (_mix_bits(_of_ids(context.ids_BT) + _of_layer(self.layer) + self.salt) & 0xFFFFFF).float() / 2**24


@register_router("interleaved")
class InterleavedRouter(BudgetRouter):
    """Each operator in turn, by position, and in the next layer one further: the control that spreads the same share as
    evenly as can be."""

    def forward(self, x_BTD: Tensor, entropy_BT: Tensor | None, context: Context = NO_CONTEXT) -> Tensor:
        positions_BT = _positions(x_BTD, context) + self.layer
        if self.num_operators > 2:
            choice_BT = positions_BT % self.num_operators
        else:
            share, seen_BT = self.shares[-1], positions_BT.to(most_precise(positions_BT.device))
            choice_BT = (((seen_BT + 1) * share).floor() - (seen_BT * share).floor()).long()
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
