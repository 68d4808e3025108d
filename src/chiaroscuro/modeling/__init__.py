"""The model as transformers sees it: configuration, recipes, layers, cache and heads; importing this registers them."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from chiaroscuro.modeling.card import CARD, markdown_table, model_card, pipeline_of
from chiaroscuro.modeling.configuration import ChiarConfig
from chiaroscuro.modeling.heads import ChiarForCausalLM, ChiarForMixedTasks, ChiarForSequenceClassification, class_of
from chiaroscuro.modeling.layer import RoutingTrace
from chiaroscuro.modeling.loading import causal_class, load_config, load_model, parameter_count, read_json
from chiaroscuro.modeling.model import ChiarModel
from chiaroscuro.modeling.recipes import RECIPES
from chiaroscuro.modeling.retrofit import is_retrofitted, load_retrofitted, retrofit, set_share

AutoConfig.register("chiaroscuro", ChiarConfig, exist_ok=True)
AutoModel.register(ChiarConfig, ChiarModel, exist_ok=True)
AutoModelForCausalLM.register(ChiarConfig, ChiarForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(ChiarConfig, ChiarForSequenceClassification, exist_ok=True)
# By the names in this table the Trainer knows that labels are to be shifted, when it computes a loss itself.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[ChiarConfig.model_type] = ChiarForCausalLM.__name__
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[f"{ChiarConfig.model_type}_mixed"] = ChiarForMixedTasks.__name__

__all__ = [
    "CARD",
    "RECIPES",
    "ChiarConfig",
    "ChiarForCausalLM",
    "ChiarForMixedTasks",
    "ChiarForSequenceClassification",
    "ChiarModel",
    "RoutingTrace",
    "causal_class",
    "class_of",
    "is_retrofitted",
    "load_config",
    "load_model",
    "load_retrofitted",
    "markdown_table",
    "model_card",
    "parameter_count",
    "pipeline_of",
    "read_json",
    "retrofit",
    "set_share",
]
