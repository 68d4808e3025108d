"""A dense start: at first all tokens attend, then fewer and fewer of them, down to the share that a router is given.

A router can only learn which tokens need attention from attention that is worth something to some of them. (Experts are
trained "dense to sparse" likewise: X. Nie et al., "EvoMoE", 2021.)
"""

from typing import Any

import numpy as np
from torch import nn

from chiaroscuro.data import Sample
from chiaroscuro.flops import flops_ratios
from chiaroscuro.routing import BudgetRouter, calibrate


class DenseStart:
    """The shares of a model's routers over training: all tokens at the first step, from step `steps` on each router's
    own share, evenly less between.

    Raises ValueError for a model in which no router has a share below one, and for a choice between more than two
    operators.
    """

    def __init__(self, model: nn.Module, steps: int):
        self.routers = [module for module in model.modules() if isinstance(module, BudgetRouter)]
        many = any(router.num_operators > 2 for router in self.routers)
        if many or not any(router.keeps_share and router.share != 1.0 for router in self.routers):
            raise ValueError(
                "a dense start (dense_steps) is for routers that give two operators a share of the tokens each; "
                "that of a retrofitted model is set before, by set_share"
            )
        self.steps = steps

    def remaining(self, step: int) -> float:
        """How much of the way from all tokens to each router's own share is still to go at a step, from 1 to 0."""
        return max(0.0, 1.0 - step / self.steps)

    def set(self, remaining: float) -> None:
        """Let so much of the way be still to go. Thresholds go by it when they are set next."""
        for router in self.routers:
            router.dense = remaining


def training_ratio(model: Any, start: DenseStart, steps: int, test: Sample, held_out: Sample) -> float:
    """The FLOPs of `steps` forward passes in training, after a dense start, to those of the same-size full attention,
    on average over the steps.

    FLOPs are quadratic in a share at most, as tokens that attend to each other are. So they are executed at three
    shares, by the trained model on the sample `test`, which say what those of each step were. The model is left with
    its own shares, calibrated on `held_out`.
    """
    executed = {}
    for remaining in (1.0, 0.5, 0.0):
        start.set(remaining)
        calibrate(model, *held_out)
        executed[remaining] = flops_ratios(model, *test)["training_ratio"]
    quadratic = np.polynomial.Polynomial.fit(list(executed), list(executed.values()), 2)
    return float(quadratic(np.array([start.remaining(step) for step in range(steps)])).mean())
