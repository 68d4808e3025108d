"""The named configurations: what `chiar` is, its baseline, the paper's routing in the same body, and its architectures.

A recipe is a plan that gives each layer its operators for any number of layers, and the configuration fields in which
it differs from the defaults of `ChiarConfig`. Lines marked "inferred" are worked out from the paper's numbers, not
stated in it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Plan = Callable[[int], list[list[str]]]


def _all_attention(layers: int) -> list[list[str]]:
    return [["attention"]] * layers


def _one_of_six(layers: int) -> list[list[str]]:
    """nothing|attention in the fourth layer of every six, or in the last of fewer than four; no operator in others."""
    attending = {min(3, layers - 1), *range(3, layers, 6)}
    return [["none", "attention"] if layer in attending else ["none"] for layer in range(layers)]


def _v1_three_operator(layers: int) -> list[list[str]]:
    """DCT, then DCT|RBF, then RBF|attention, then attention: one layer each in the paper's four (inferred)."""
    middle = max(0, layers - 2)
    early = middle // 2
    return _between([["dct", "rbf"]] * early + [["rbf", "attention"]] * (middle - early), layers)


def _v1_dct_attention(layers: int) -> list[list[str]]:
    """DCT in the lower half, DCT|attention above it, attention last (inferred from 62.5 % fewer attention FLOPs)."""
    middle = max(0, layers - 2)
    early = middle // 2
    return _between([["dct"]] * early + [["dct", "attention"]] * (middle - early), layers)


def _v2(layers: int) -> list[list[str]]:
    """DCT, then DCT|attention, attention last."""
    return _between([["dct", "attention"]] * max(0, layers - 2), layers)


def _between(middle: list[list[str]], layers: int) -> list[list[str]]:
    first = [["dct"]] if layers > 1 else []
    return [*first, *middle, ["attention"]]


@dataclass(frozen=True)
class Recipe:
    """A plan of layers and the fields that are not at their default. baseline: the recipe of the same body that attends
    in every layer."""

    summary: str
    plan: Plan
    fields: dict[str, Any] = field(default_factory=dict)
    baseline: str = "full_attention"


_V1 = {
    "vocab_size": 50257,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "max_position_embeddings": 256,
    "norm_placement": "post",
    "embedding_norm": False,
    "position_embedding": "learned",
    "dropout": 0.1,
    "dct_filter_start": 1.0,
    "short_convolution": 0,
}
_BY_ENTROPY = {"router": "threshold", "tau_low": 0.855, "tau_high": 0.865}
# That each operator has its own feed-forward network in v1 is inferred: only so do its parameters come to 17M, and
# the paper presents the shared one as a change of v2.
_V1_ROUTED = _V1 | _BY_ENTROPY | {"feed_forward": "per_operator"}
_V2_BASELINE = _V1 | {"position_embedding": "rotary", "max_position_embeddings": 8192}
_V2 = _V2_BASELINE | _BY_ENTROPY | {"meta_router": "causal"}
_400M = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 28, "tau_low": 0.8935, "tau_high": 0.8973}

RECIPES: dict[str, Recipe] = {
    "chiar": Recipe(
        "attention where it pays: in one layer of six, for the tokens that recur; pre-norm, rotary, short "
        "convolutions; six layers are about as large as four of full attention",
        _one_of_six,
    ),
    "full_attention": Recipe("the same body with attention in every layer", _all_attention),
    "spectral": Recipe(
        "the paper's routing in the same body: DCT, then DCT|attention by entropy, then attention",
        _v2,
        {"router": "threshold"},
    ),
    "v1_full_attention": Recipe("the paper's first baseline: post-norm, learned positions", _all_attention, _V1),
    "v1_three_operator": Recipe(
        "the paper, first version: DCT, RBF and attention", _v1_three_operator, _V1_ROUTED, "v1_full_attention"
    ),
    "v1_dct_attention": Recipe(
        "the paper, first version: DCT and attention", _v1_dct_attention, _V1_ROUTED, "v1_full_attention"
    ),
    "v2_full_attention": Recipe(
        "the paper's second baseline: post-norm, rotary positions", _all_attention, _V2_BASELINE
    ),
    "v2": Recipe("the paper, second version, at the size of the first", _v2, _V2, "v2_full_attention"),
    "v2_400m": Recipe("the paper, second version, full size", _v2, _V2 | _400M, "v2_full_attention"),
}


def recipe_named(name: str) -> Recipe:
    """Raises ValueError listing the known recipes."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; known recipes: {', '.join(RECIPES)}")
    return RECIPES[name]
