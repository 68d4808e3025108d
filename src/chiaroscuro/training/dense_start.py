"""A dense start: at first all tokens attend, then fewer and fewer of them, down to the share that a router is given.

Which tokens need attention cannot be told before attention has learned what to do with them.
"""

from typing import Any

import numpy as np
from torch import Tensor, nn

from chiaroscuro.flops import flops_ratios
from chiaroscuro.routing import BudgetRouter, calibrate


class DenseStart:
    """The shares of a model's routers over training: all tokens at the first step, from step `steps` on each router's
    own share, evenly less between, changed every `every` steps. Raises ValueError for a model in which no router parts
    the tokens between two operators by a share."""

    def __init__(self, model: nn.Module, steps: int, every: int):
        routers = [module for module in model.modules() if isinstance(module, BudgetRouter)]
        self.own = {router: router.shares[-1] for router in routers if router.num_operators == 2}
        if not self.own:
            raise ValueError("a dense start (dense_steps) is for routers that keep to a share of two operators")
        self.steps = steps
        self.every = every

    def part(self, step: int) -> float:
        """How much of the way from a router's own share to all tokens is still to go at a step, from 1 to 0."""
        return max(0.0, 1.0 - (step - step % self.every) / self.steps)

    def set(self, part: float) -> None:
        """Give each router its share with so much of the way to go. Thresholds follow when they are calibrated."""
        for router, share in self.own.items():
            router.share = share + part * (1.0 - share)


def training_ratio(model: Any, start: DenseStart, steps: int, input_ids_BT: Tensor, held_out_BT: Tensor) -> float:
    """The FLOPs of `steps` forward passes in training, after a dense start, to those of the same-size full attention,
    executed by the trained model on `input_ids_BT`. It is left calibrated on `held_out_BT`, with its own shares.

    FLOPs are quadratic in a share at most, as tokens that attend to each other are; so three shares tell all.
    """
    measured = {}
    for part in (1.0, 0.5, 0.0):
        start.set(part)
        calibrate(model, held_out_BT)
        measured[part] = flops_ratios(model, input_ids_BT)["training_ratio"]
    quadratic = np.polynomial.Polynomial.fit(list(measured), list(measured.values()), 2)
    return float(quadratic(np.array([start.part(step) for step in range(steps)])).mean())
