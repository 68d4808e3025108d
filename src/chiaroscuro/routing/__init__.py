"""Who goes where: routers, their calibration, the MetaRouter, collapse, and the dispatch of tokens to operators."""

from chiaroscuro.routing.calibration import Calibration, calibrate
from chiaroscuro.routing.collapse import starving, utilisation, utilisation_entropy
from chiaroscuro.routing.dispatch import Dispatch, RoutedMixer, Routing, dispatch
from chiaroscuro.routing.force import at_share, forced
from chiaroscuro.routing.meta import MetaRouter
from chiaroscuro.routing.registry import ROUTERS, router_class
from chiaroscuro.routing.router import BudgetRouter, Router, ThresholdRouter, threshold_routers
from chiaroscuro.routing.thresholds import check_share, check_thresholds, noise_thresholds

__all__ = [
    "ROUTERS",
    "BudgetRouter",
    "Calibration",
    "Dispatch",
    "MetaRouter",
    "RoutedMixer",
    "Router",
    "Routing",
    "ThresholdRouter",
    "at_share",
    "calibrate",
    "check_share",
    "check_thresholds",
    "dispatch",
    "forced",
    "noise_thresholds",
    "router_class",
    "starving",
    "threshold_routers",
    "utilisation",
    "utilisation_entropy",
]
