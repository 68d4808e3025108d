"""CHIAR-Former: attention for the tokens that gain from it, something cheaper for the others."""

from chiaroscuro.modeling import (
    RECIPES,
    ChiarConfig,
    ChiarForCausalLM,
    ChiarForSequenceClassification,
    ChiarModel,
    RoutingTrace,
    load_retrofitted,
    retrofit,
    set_share,
)
from chiaroscuro.routing import RoutedMixer, calibrate

__version__ = "0.1.0"

__all__ = [
    "RECIPES",
    "ChiarConfig",
    "ChiarForCausalLM",
    "ChiarForSequenceClassification",
    "ChiarModel",
    "RoutedMixer",
    "RoutingTrace",
    "calibrate",
    "load_retrofitted",
    "retrofit",
    "set_share",
]
