"""The model as transformers sees it: configuration, recipes, layers, cache and heads; importing this registers them."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from chiaroscuro.modeling.configuration import ChiarConfig
from chiaroscuro.modeling.heads import ChiarForCausalLM, ChiarForMixedTasks, ChiarForSequenceClassification
from chiaroscuro.modeling.layer import RoutingTrace
from chiaroscuro.modeling.model import ChiarModel
from chiaroscuro.modeling.recipes import RECIPES
from chiaroscuro.modeling.retrofit import load_retrofitted, retrofit, set_share

AutoConfig.register("chiaroscuro", ChiarConfig, exist_ok=True)
AutoModel.register(ChiarConfig, ChiarModel, exist_ok=True)
AutoModelForCausalLM.register(ChiarConfig, ChiarForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(ChiarConfig, ChiarForSequenceClassification, exist_ok=True)

__all__ = [
    "RECIPES",
    "ChiarConfig",
    "ChiarForCausalLM",
    "ChiarForMixedTasks",
    "ChiarForSequenceClassification",
    "ChiarModel",
    "RoutingTrace",
    "load_retrofitted",
    "retrofit",
    "set_share",
]
