"""Overrule a router: send chosen tokens to chosen operators, to see what that does.

Shapes: B batch, T tokens, O operators.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import one_hot

from chiaroscuro.ops.evaluating import hooks_heard
from chiaroscuro.routing.router import Router, ThresholdRouter
from chiaroscuro.routing.thresholds import between, check_share


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
        with hooks_heard():
            yield
    finally:
        hook.remove()


@contextmanager
def at_share(model: nn.Module, share: float) -> Iterator[None]:
    """While it lasts, every router of `model` that has thresholds sends `share` of the tokens it is given, those with
    the highest scores, to its last operator, and the others to its first; tokens of equal score are not parted. Raises
    ValueError for a share outside [0, 1]."""
    check_share(share)
    routers = [module for module in model.modules() if isinstance(module, ThresholdRouter)]

    def place_thresholds(router: Any, args: tuple[Any, ...]) -> None:
        place = between(router.score(*args).flatten(), 1.0 - share)
        router.set_thresholds(place, place)

    with ExitStack() as stack:
        for router in routers:
            stack.callback(router.set_thresholds, *router.thresholds.tolist())
            stack.callback(router.register_forward_pre_hook(place_thresholds).remove)
        stack.enter_context(hooks_heard())
        yield
