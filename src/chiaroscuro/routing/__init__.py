"""Who goes where: routers, which importing this registers, their calibration, the MetaRouter, collapse, and the
dispatch of tokens to operators."""

from chiaroscuro.routing.calibration import Calibration, calibrate, follow
from chiaroscuro.routing.collapse import starving, utilisation, utilisation_entropy
from chiaroscuro.routing.control_routers import HashRouter, InterleavedRouter, RandomExploredRouter, RandomRouter
from chiaroscuro.routing.dispatch import Dispatch, RoutedMixer, Routing, dispatch
from chiaroscuro.routing.force import at_share, forced
from chiaroscuro.routing.learned_routers import BenefitRouter, HardRouter, LearnedRouter, SoftRouter
from chiaroscuro.routing.meta import MetaRouter
from chiaroscuro.routing.recurrence import RecurrenceRouter, recency
from chiaroscuro.routing.router import (
    BudgetRouter,
    Router,
    ThresholdRouter,
    register_router,
    router_class,
    router_names,
    threshold_routers,
)
from chiaroscuro.routing.thresholds import check_share, check_thresholds, noise_thresholds

__all__ = [
    "BenefitRouter",
    "BudgetRouter",
    "Calibration",
    "Dispatch",
    "HardRouter",
    "HashRouter",
    "InterleavedRouter",
    "LearnedRouter",
    "MetaRouter",
    "RandomExploredRouter",
    "RandomRouter",
    "RecurrenceRouter",
    "RoutedMixer",
    "Router",
    "Routing",
    "SoftRouter",
    "ThresholdRouter",
    "at_share",
    "calibrate",
    "check_share",
    "check_thresholds",
    "dispatch",
    "follow",
    "forced",
    "noise_thresholds",
    "recency",
    "register_router",
    "router_class",
    "router_names",
    "starving",
    "threshold_routers",
    "utilisation",
    "utilisation_entropy",
]
