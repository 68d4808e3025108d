"""RBF kernel mixing by random features, in time linear in the length.

Shapes: B batch, T tokens, D model channels, F random features, U = D + 1 value channels and the normaliser, M chosen
    tokens.
"""

import math
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import initialization as init

from chiaroscuro.mixers.base import NO_CONTEXT, Context, Mixer, register_mixer
from chiaroscuro.mixers.flops import Flops, Work, linear_flops
from chiaroscuro.ops import Chosen, median_bandwidth, random_frequencies, rbf_feature_mix, rbf_features
from chiaroscuro.ops.rbf import chunks


@register_mixer("rbf")
class RBFMixer(Mixer):
    """Each token becomes the mean of the projected tokens it may see, weighted by exp(-gamma |x_i - x_j|^2) (paper,
    section 1), estimated with `features` positive random features; the weight for itself is exact.

    The bandwidth gamma is learned. It starts at 1 / 2D, at which unit-variance tokens weigh each other by 1/e, and
    `fit` sets it from data by the median heuristic. The kernel knows only differences but its features fade with the
    distance from the origin, so `fit` also moves the origin to the mean of the data. The estimate serves while
    gamma |x - mean|^2 is a few units at most; far beyond, a token is left with its own value.
    """

    remembers = True

    def __init__(self, hidden_size: int, features: int = 64, causal: bool = True):
        super().__init__()
        self.hidden_size = hidden_size
        self.features = features
        self.causal = causal
        self.value = nn.Linear(hidden_size, hidden_size)
        self.log_gamma = nn.Parameter(torch.empty(1))  # sharding takes no scalars
        self.frequencies_FD: Tensor
        self.register_buffer("frequencies_FD", torch.empty(features, hidden_size))
        self.centre_D: Tensor
        self.register_buffer("centre_D", torch.empty(hidden_size))
        self.reset_parameters()

    @classmethod
    def from_config(cls, config: Any) -> Self:
        return cls(config.hidden_size, config.rbf_features)

    def reset_parameters(self) -> None:
        init.constant_(self.log_gamma, -math.log(2 * self.hidden_size))
        init.zeros_(self.centre_D)
        if self.frequencies_FD.is_meta:  # these take time and memory wherever they go
            return
        init.copy_(self.frequencies_FD, random_frequencies(self.features, self.hidden_size))

    @torch.no_grad()
    def fit(self, x_BTD: Tensor) -> None:
        self.centre_D.copy_(x_BTD.flatten(0, -2).mean(0))
        self.log_gamma.copy_(median_bandwidth(x_BTD).log())

    def forward(self, x_BTD: Tensor, chosen: Chosen | None = None, context: Context = NO_CONTEXT) -> Tensor:
        state = {} if context.state is None else context.state
        mixed, total_BFU = rbf_feature_mix(
            rbf_features(x_BTD - self.centre_D, self.frequencies_FD, self.log_gamma.exp()),
            self.value(x_BTD),
            self.causal,
            context.valid_BT,
            chosen,
            state.get("sum_BFU"),
        )
        state["sum_BFU"] = total_BFU
        return mixed

    def flops(self, work: Work) -> Flops:
        D, F, U = self.hidden_size, self.features, self.hidden_size + 1
        S, chunk = chunks(work.length)
        whole_chunks = S * chunk / work.length
        directions = 1 if self.causal else 2
        projections = linear_flops(work.tokens, D, F) + linear_flops(work.tokens, D, D)
        summing = linear_flops(work.tokens * whole_chunks, F, U)
        queries = work.chosen * (whole_chunks if work.chosen == work.tokens else 1)
        reading = linear_flops(queries, F, U) + linear_flops(queries, F, chunk) + linear_flops(queries, chunk, U)
        return Flops(mixing=projections + directions * (summing + reading))
