"""Read a checkpoint of the paper's public code into a `ChiarForCausalLM`.

Such a file is an archive of torch holding `{"step", "model": state_dict, "val_ppl", "cfg"}`. Two facts about that code
are built into the result: its filter acts as 2 C^T diag(w) C with C the orthonormal DCT, so w is doubled, and its
entropy counts the energy of the constant coefficient twice (`entropy_dc_weight`).
"""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chiaroscuro.modeling.archive import check_tensors, load_archive
from chiaroscuro.modeling.configuration import ChiarConfig
from chiaroscuro.modeling.heads import ChiarForCausalLM

_NORMS_AND_FEED_FORWARD = {
    "dct_mix.norm.": "mixer.mixers.dct.norm.",
    "attn.norm.": "mixer.mixers.attention.norm.",
    "attn.out_proj.": "mixer.mixers.attention.mixer.out.",
    "ffn.0.": "feed_forwards.0.up.",
    "ffn.3.": "feed_forwards.0.down.",
    "ffn_norm.": "feed_forward_norm.",
}

_OUTSIDE_LAYERS = {
    "token_emb.weight",
    "lm_head.weight",
    "norm.weight",
    "norm.bias",
    "meta_router.gate_proj.weight",
    "meta_router.gate_proj.bias",
}


def convert(checkpoint: Path) -> ChiarForCausalLM:
    """The model in `checkpoint`, in the dtype of its weights. Raises ValueError when it is not such a checkpoint."""
    content = load_archive(checkpoint)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict) or "cfg" not in content:
        raise ValueError(
            f"{checkpoint} does not hold the entries 'model' and 'cfg' of a checkpoint of the paper's code"
        )
    check_tensors(content["model"].values(), checkpoint)
    try:
        return _model(content["model"], content["cfg"])
    except KeyError as error:
        raise ValueError(f"{checkpoint} lacks the entry {error}") from error
    except Exception as error:  # settings may be of any type and lead to any
        raise ValueError(f"{checkpoint} does not fit the model that its settings describe: {error}") from error


def _model(weights: dict[str, Tensor], settings: dict[str, Any]) -> ChiarForCausalLM:
    if settings["n_layers"] > len(weights):
        raise ValueError(f"{settings['n_layers']} layers for {len(weights)} weights")
    config = _config(weights, settings)
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        # Sizes that are not those of the weights are found before there is memory for them.
        ChiarForCausalLM(config).load_state_dict(_renamed(weights, config, settings), assign=True)
    model = ChiarForCausalLM(config)
    nn.Module.to(model, weights["token_emb.weight"].dtype)
    model.load_state_dict(_renamed(weights, config, settings))
    return model.eval()


def _config(weights: dict[str, Tensor], settings: dict[str, Any]) -> ChiarConfig:
    layers = []
    for index in range(settings["n_layers"]):
        operators = {"dct": f"layers.{index}.dct_mix.w", "attention": f"layers.{index}.attn.qkv.weight"}
        layers.append([name for name, key in operators.items() if key in weights])
    return ChiarConfig.from_recipe(
        "v2",
        vocab_size=settings["vocab_size"],
        hidden_size=settings["d_model"],
        num_attention_heads=settings["n_heads"],
        layer_operators=layers,
        max_position_embeddings=settings["max_seq_len"],
        rope_base=float(settings["rope_base"]),
        dropout=float(settings["dropout"]),
        router=settings["routing_mode"],
        tau_low=settings["tau_low"],
        tau_high=settings["tau_high"],
        meta_router="paper" if settings["use_meta_router"] else "none",
        entropy_dc_weight=2.0,
    )


def _renamed(weights: dict[str, Tensor], config: ChiarConfig, settings: dict[str, Any]) -> dict[str, Tensor]:
    if not torch.equal(weights.get("lm_head.weight", weights["token_emb.weight"]), weights["token_emb.weight"]):
        raise ValueError("its output head is not tied to the embedding")
    renamed = {
        "model.embed_tokens.weight": weights["token_emb.weight"],
        "lm_head.weight": weights["token_emb.weight"],
        "model.norm.weight": weights["norm.weight"],
        "model.norm.bias": weights["norm.bias"],
    }
    if config.meta_router != "none":
        renamed["model.meta_router.gate.weight"] = weights["meta_router.gate_proj.weight"]
        renamed["model.meta_router.bias"] = weights["meta_router.gate_proj.bias"]
    for layer, operators in enumerate(config.layer_operators or ()):
        if len(operators) > 1:
            thresholds = torch.tensor([settings["tau_low"], settings["tau_high"]])
            renamed[f"model.layers.{layer}.mixer.router.thresholds"] = thresholds
    for key, weight in weights.items():
        found = re.fullmatch(r"layers\.(\d+)\.(.+)", key)
        if found is None:
            if key not in _OUTSIDE_LAYERS:
                raise ValueError(f"the weight {key!r} has no place in the model")
            continue
        prefix, name = f"model.layers.{found[1]}.", found[2]
        if name == "dct_mix.w":
            renamed[prefix + "mixer.mixers.dct.mixer.filter"] = 2 * weight
        elif name.startswith("attn.qkv."):
            kind = name.rsplit(".", 1)[1]
            query, key_value = weight.split([config.hidden_size, 2 * config.hidden_size])
            renamed[prefix + f"mixer.mixers.attention.mixer.query.{kind}"] = query
            renamed[prefix + f"mixer.mixers.attention.mixer.key_value.{kind}"] = key_value
        else:
            # The rotary tables need no place here; a name that is not known is left as it is, and refused when loading.
            for old, new in _NORMS_AND_FEED_FORWARD.items():
                name = new + name.removeprefix(old) if name.startswith(old) else name
            if not name.startswith("attn.rope."):
                renamed[prefix + name] = weight
    return renamed
