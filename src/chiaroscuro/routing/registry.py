"""Routers by the names that configurations call them by."""

from chiaroscuro.routing.control_routers import HashRouter, InterleavedRouter, RandomExploredRouter, RandomRouter
from chiaroscuro.routing.learned_routers import BenefitRouter, HardRouter, LearnedRouter, SoftRouter
from chiaroscuro.routing.router import Router, ThresholdRouter

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
