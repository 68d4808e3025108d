"""What can be audited: a run, a folder with any causal language model of transformers, or a recipe.

Shapes: B batch, T tokens.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chiaroscuro.modeling import (
    RECIPES,
    ChiarConfig,
    ChiarForCausalLM,
    ChiarForSequenceClassification,
    causal_class,
    class_of,
    is_retrofitted,
    load_config,
    load_model,
    load_retrofitted,
    parameter_count,
)
from chiaroscuro.routing import calibrate
from chiaroscuro.training import RESULTS, Task, load_run, task_of

ROWS, TOKENS = 8, 128
MOST = 10**9  # parameters of a model without weights: it is built, and copied in float64
KINDS = 48  # of random tokens
SMALL = {"vocab_size": 512, "hidden_size": 64, "num_attention_heads": 4}


class Subject(NamedTuple):
    """A model, and what to look at it with, (B, T). calibrated: whether its thresholds were found on tokens like
    these."""

    model: PreTrainedModel
    input_ids_BT: Tensor
    calibrated: bool


def subject(name: str, data: str | None = None) -> Subject:
    """A model and held-out text of its run or of `data`, else random tokens.

    name: a run folder; a folder with `config.json`, and weights as safetensors or none; or, where there is no such
        folder, a recipe, which is built small and calibrated. Of a classifier its body is taken. Raises ValueError for
        anything else.
    """
    folder = Path(name)
    if not (folder / "config.json").is_file():
        if name in RECIPES and data is None:
            return _untrained(name)
        if name in RECIPES:
            raise ValueError(f"--data is encoded with the tokenizer of a run, and {name} is a recipe")
        raise ValueError(f"{name} is neither a folder with a config.json nor a recipe; recipes: {', '.join(RECIPES)}")
    config = load_config(folder)
    if isinstance(config, ChiarConfig) and (data is not None or (folder / RESULTS).exists()):
        run = load_run(folder)
        return Subject(_causal(run.model), _texts(task_of(run, data)), calibrated=True)
    if data is not None:
        raise ValueError(f"--data is encoded with the tokenizer of a run, and {name} is none")
    cls = class_of(config) if isinstance(config, ChiarConfig) else causal_class(config)
    if is_retrofitted(config):
        model = load_retrofitted(folder)
    elif any(folder.glob("*.safetensors")):
        model = load_model(cls, folder, config)
    elif parameter_count(cls, config) <= MOST:
        model = cls(config)
    else:
        raise ValueError(f"{name} describes more than {MOST:,} parameters and has no weights: give it smaller sizes")
    of_text = config.get_text_config()  # of what reads pictures as well
    longest = getattr(of_text, "max_position_embeddings", TOKENS)
    ids_BT = _random_tokens(of_text.vocab_size, longest if longest > 0 else TOKENS)  # some say -1 for any length
    return Subject(_causal(model), ids_BT, calibrated=False)


def _causal(model: PreTrainedModel) -> PreTrainedModel:
    return model.model if isinstance(model, ChiarForSequenceClassification) else model


def _texts(task: Task) -> Tensor:
    """Test text without padding, (B, T): windows of it, or of some sequences the longer half, cut to one length."""
    ids_BT, mask_BT = task.sample("test", ROWS * task.plan.seq_len)
    if mask_BT is None:
        return ids_BT
    lengths = mask_BT.sum(1)
    median = int(lengths.median())
    return ids_BT[lengths >= median][:, :median]


def _untrained(recipe: str) -> Subject:
    """A small model with weights so far from their start that no path through it is silent, calibrated as training does
    before its first step."""
    torch.manual_seed(0)
    model = ChiarForCausalLM(ChiarConfig.from_recipe(recipe, **SMALL))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids_BT = _random_tokens(SMALL["vocab_size"], TOKENS)
    calibrate(model, ids_BT, fit_mixers=True)
    return Subject(model, ids_BT, calibrated=True)


def _random_tokens(vocab_size: int, longest: int) -> Tensor:
    """Of few kinds, so that some recur, as in text."""
    return torch.randint(
        min(vocab_size, KINDS), (ROWS, min(TOKENS, longest)), generator=torch.Generator().manual_seed(0)
    )
