"""Read a model from a folder that a stranger may have made.

Nothing in the folder is run. What it makes the program allocate is bounded by the length of its files: the model is
built without memory first and held against the headers of its weights.
"""

import json
import math
import warnings
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from chiaroscuro.modeling.configuration import LONGEST

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LISTED = ("num_labels", "num_hidden_layers", "num_layers", "n_layer")  # configurations make lists as long as these
_SPARE = 2**20  # values that are not in the file, such as tables of frequencies


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError when the file is missing or not a JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or remove it and make it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object")
    return content


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a model of transformers. Raises ValueError when it is damaged, when its model is of a kind
    that is not installed (code in the folder is not run), and when it names weights elsewhere."""
    path = folder / "config.json"
    content = read_json(path)
    for name in _LISTED:
        if isinstance(content.get(name), int) and content[name] > LONGEST:
            raise ValueError(f"{path}: {name} is {content[name]}, and at most {LONGEST} are accepted")
    if content.get("transformers_weights") is not None:
        raise ValueError(f"{path}: transformers_weights is not followed; the weights belong into {_WEIGHTS}")
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ValueError(f"{path}: no model of type {kind!r} is installed, and code in the folder is not run")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a value of a wrong type may lead to any
        raise ValueError(f"{path} describes no model: {error}") from error


def causal_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of the causal language model of a configuration. Raises ValueError when there is none."""
    try:
        return cast(type[PreTrainedModel], AutoModelForCausalLM._model_mapping[type(config)])
    except KeyError as error:
        raise ValueError(f"there is no causal language model of type {config.model_type!r}") from error


def load_model(cls: type[PreTrainedModel], folder: Path, config: PreTrainedConfig, **kwargs: Any) -> PreTrainedModel:
    """The model of class `cls` in a folder whose `load_config` is given, in evaluation mode; `kwargs` as for
    `from_pretrained`. Raises ValueError when its weights are damaged, are not those of its configuration, or are not
    finite."""
    _check_size(cls, config, folder)
    try:
        load: Any = cls.from_pretrained  # typed as if it returned the model only
        model, found = load(
            folder, config=config, local_files_only=True, use_safetensors=True, output_loading_info=True, **kwargs
        )
    except Exception as error:  # as for the configuration, of which this reads more
        raise ValueError(f"the weights in {folder} are damaged or not those of its config.json: {error}") from error
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[fault]:
            names = ", ".join(sorted(map(str, found[fault]))[:3])
            raise ValueError(f"the weights in {folder} are not those of its config.json: {fault[:-5]} {names}")
    for name, weight in model.state_dict().items():
        if not weight.is_meta and not weight.isfinite().all():
            raise ValueError(f"the weights in {folder} are damaged: {name} holds values that are not finite")
    return cast(PreTrainedModel, model.eval())


def parameter_count(cls: type[PreTrainedModel], config: PreTrainedConfig) -> int:
    """Parameters and buffers of a model, which is built without memory. Raises ValueError when it cannot be built."""
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            model = cls(config)
    except Exception as error:  # as for the configuration: sizes that do not fit each other are found here at last
        raise ValueError(f"no model can be built by this configuration: {error}") from error
    return sum(tensor.numel() for tensor in chain(model.parameters(), model.buffers()))


def _check_size(cls: type[PreTrainedModel], config: PreTrainedConfig, folder: Path) -> None:
    """Raises ValueError when the model is larger than the weights that are there for it."""
    shapes = [shape for file in _weight_files(folder) for shape in _shapes(file)]
    layers, held = getattr(config, "num_hidden_layers", 0), sum(map(math.prod, shapes))
    if layers > len(shapes):  # building a layer without memory still takes time
        raise ValueError(f"{folder}: config.json describes {layers} layers, and there are {len(shapes)} weights")
    described = parameter_count(cls, config)
    if described > held + _SPARE:
        raise ValueError(f"{folder}: config.json describes {described:,} parameters, and the weights are {held:,}")


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights. Raises ValueError when one is missing or not in the folder."""
    names = [_WEIGHTS]
    if not (folder / _WEIGHTS).is_file() and (folder / _INDEX).is_file():
        names = sorted({str(name) for name in dict(read_json(folder / _INDEX).get("weight_map") or {}).values()})
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{folder / _INDEX} names {name!r}, which is not a file of its folder")
        if not (folder / name).is_file():
            raise ValueError(f"no weights in {folder}: {name} is missing")
    return [folder / name for name in names]


def _shapes(file: Path) -> list[list[int]]:
    """Of the tensors in a file, of which only the header is read."""
    try:
        with safe_open(file, "pt") as weights:
            return [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged ({error}): restore it or train again") from error
