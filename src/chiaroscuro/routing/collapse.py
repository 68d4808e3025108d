"""Routing collapse: how evenly the operators of a layer are used, a regulariser that evens it, and a detector.

Shapes: B batch, T tokens, O operators.
"""

import torch
from torch import Tensor


def utilisation(gates_BTO: Tensor) -> Tensor:
    """q_o: mean gate of each operator, (O,), over the tokens that are not padding: those whose gates are not all
    zero."""
    return gates_BTO.sum((0, 1)) / gates_BTO.sum().clamp_min(1.0)


def utilisation_entropy(q_O: Tensor) -> Tensor:
    """U = - sum_o q_o ln q_o in nats, between 0 (one operator takes all) and ln O (paper, collapse regulariser).

    Training minimises loss - lambda U. Gates that carry no gradient, such as those of the threshold router, make the
    regulariser a constant."""
    return -(q_O * q_O.clamp_min(torch.finfo(q_O.dtype).tiny).log()).sum()


def starving(q_O: Tensor, operators: tuple[str, ...]) -> list[str]:
    """The operators that get less than a hundredth of the tokens: routing has collapsed when there is one."""
    return [name for name, q in zip(operators, q_O.tolist(), strict=True) if q < 0.01]
