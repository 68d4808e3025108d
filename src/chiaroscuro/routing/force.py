"""Overrule a router: send chosen tokens to chosen operators, to see what that does.

Shapes: B batch, T tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from chiaroscuro.routing.router import Router, threshold_routers
from chiaroscuro.routing.thresholds import check_share


@contextmanager
def forced(router: Router, choice_BT: Tensor) -> Iterator[None]:
    """While it lasts, `router` sends token t of row b to the operator with index `choice_BT[b, t]`; where that is
    negative it decides for itself. Raises ValueError for an index that no operator has."""
    if int(choice_BT.max()) >= router.num_operators:
        raise ValueError(f"operator {int(choice_BT.max())} of a layer that has {router.num_operators}")
    before = router.forced_BT
    router.forced_BT = choice_BT if before is None else choice_BT.where(choice_BT >= 0, before)
    try:
        yield
    finally:
        router.forced_BT = before


@contextmanager
def at_share(model: nn.Module, share: float) -> Iterator[None]:
    """While it lasts, every router of `model` that has thresholds sends `share` of the tokens it is given, those with
    the highest scores, to its last operator, and the others to its first; tokens of equal score are not parted. Raises
    ValueError for a share outside [0, 1]."""
    check_share(share)
    routers = threshold_routers(model)
    before = [(router.share_at_hand, router.thresholds.tolist()) for router in routers]
    for router in routers:
        router.share_at_hand = share
    try:
        yield
    finally:
        for router, (share_before, thresholds) in zip(routers, before, strict=True):
            router.share_at_hand = share_before
            router.set_thresholds(*thresholds)
