"""Overrule a router: send chosen tokens to chosen operators, to see what that does.

Shapes: B batch, T tokens, O operators.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import one_hot

from chiaroscuro.routing.router import Router


@contextmanager
def forced(router: Router, choice_BT: Tensor) -> Iterator[None]:
    """While it lasts, `router` sends token t of row b to the operator with index `choice_BT[b, t]`; where that is
    negative it decides for itself. Raises ValueError for an index that no operator has."""
    if int(choice_BT.max()) >= router.num_operators:
        raise ValueError(f"operator {int(choice_BT.max())} of a layer that has {router.num_operators}")

    def overrule(module: nn.Module, args: Any, gates_BTO: Tensor) -> Tensor:
        wanted = one_hot(choice_BT.clamp_min(0), router.num_operators).to(gates_BTO)
        return wanted.where((choice_BT >= 0)[..., None], gates_BTO)

    hook = router.register_forward_hook(overrule)
    try:
        yield
    finally:
        hook.remove()
