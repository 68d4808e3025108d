"""The configuration of a CHIAR-Former."""

import dataclasses
import difflib
import os
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from transformers import PreTrainedConfig

from chiaroscuro.mixers import mixer_class
from chiaroscuro.modeling.recipes import recipe_named
from chiaroscuro.routing import (
    BenefitRouter,
    BudgetRouter,
    ThresholdRouter,
    check_share,
    check_thresholds,
    router_class,
)

_CHOICES: dict[str, tuple[str, ...]] = {
    "attention_keys": ("all", "routed"),
    "dispatch": ("auto", "dense", "sparse"),
    "norm_placement": ("pre", "post"),
    "position_embedding": ("rotary", "learned"),
    "meta_router": ("none", "causal", "paper"),
    "feed_forward": ("shared", "per_operator"),
}
_SWITCHES = ("embedding_norm", "use_cache", "tie_word_embeddings")
_NUMBERS = {
    "rope_base": 1.0,
    "entropy_dc_weight": 0.0,
    "collapse_weight": 0.0,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "layer_norm_eps": 0.0,
    "initializer_range": 0.0,
    "dct_filter_start": -sys.float_info.max,
}
LAYERS = 5
OF_ROUTING = {  # what a twin does not inherit
    *("recipe", "layer_operators", "router", "routed_share", "tau_low", "tau_high", "attention_keys", "dispatch"),
    *("meta_router", "feed_forward", "collapse_weight", "entropy_dc_weight", "dct_filter_start", "rbf_features"),
    *("window", "task_labels"),
}
NEARLY = 0.85  # how alike, one at the most, a name is to a field's that is taken for a slip of the pen
LONGEST = 10_000  # of what is listed: layers, labels
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rbf_features",
    "window",
)


REMOTE_MODULE = "modeling_chiaroscuro"
_REMOTE_CLASSES = {
    "AutoConfig": "ChiarConfig",
    "AutoModel": "ChiarModel",
    "AutoModelForCausalLM": "ChiarForCausalLM",
    "AutoModelForSequenceClassification": "ChiarForSequenceClassification",
}


class ChiarConfig(PreTrainedConfig):
    """Sizes, operators per layer, and how tokens are routed. Raises ValueError for what does not fit. Other names are
    kept, as in all configurations of transformers, with a warning where one is nearly one of these.

    The defaults are those of the recipe `chiar`; `ChiarConfig.from_recipe(name, **fields)` starts from another one.

    recipe: the recipe that the fields started from.
    layer_operators: per layer the operators a token may go to, the cheapest first; by default the plan of the recipe.
    router: "recurrence", "benefit", "threshold", "soft", "hard", "learned", or the controls "random",
        "random_explored", "hash" and "interleaved" (`chiaroscuro.routing`).
    routed_share: of the tokens of a layer with two operators, how many go to the second; None: half of them, by router
        "recurrence" those that recur.
    tau_low, tau_high: thresholds of router "threshold" before calibration; None: where they would lie for white noise.
    attention_keys: "all": a token sees every earlier token; "routed": those that were routed to attention in the layer.
    dispatch: "sparse": operators run on their tokens only; "dense": on all, and gates blend; "auto": sparse where it
        can.
    norm_placement: "pre": x + op(norm(x)); "post", the paper's: norm(x + op(x)), a norm of its own for each operator.
    embedding_norm: a norm after the embedding, so that the residual stream starts at scale one whatever the operators.
    short_convolution: width of a causal convolution over the tokens, channel by channel, before the operators of each
        layer (`chiaroscuro.mixers.ShortConvolution`); 0: none.
    meta_router: "causal" or "paper", which reads the future (`chiaroscuro.routing.MetaRouter`), gates the first layer.
    feed_forward: "shared": one network per layer; "per_operator": one for each operator of the layer.
    dct_filter_start: initial value of the spectral filter; 1 is the identity.
    window: tokens that operator "window" sees, itself included.
    entropy_dc_weight: see `chiaroscuro.ops.spectral_entropy`; 2 in converted checkpoints of the authors' code.
    task_labels: per task the number of labels of its head (`ChiarForMixedTasks`).
    collapse_weight: lambda of the collapse regulariser (`chiaroscuro.routing.utilisation_entropy`).
    """

    model_type = "chiaroscuro"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache", "routing", "meta_gate"]

    recipe: str = "chiar"
    vocab_size: int = 8192
    hidden_size: int = 256
    num_hidden_layers: int = None  # type: ignore[assignment]
    num_attention_heads: int = 4
    intermediate_size: int | None = None
    max_position_embeddings: int = 8192
    layer_operators: list[list[str]] | None = None
    router: str = "recurrence"
    routed_share: float | None = None
    tau_low: float | None = None
    tau_high: float | None = None
    attention_keys: str = "all"
    dispatch: str = "auto"
    norm_placement: str = "pre"
    embedding_norm: bool = True
    short_convolution: int = 4
    position_embedding: str = "rotary"
    rope_base: float = 10000.0
    meta_router: str = "none"
    feed_forward: str = "shared"
    dct_filter_start: float = 0.0
    rbf_features: int = 64
    window: int = 32
    entropy_dc_weight: float = 1.0
    collapse_weight: float = 0.0
    task_labels: dict[str, int] | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("recipe", "router"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a name, got {getattr(self, name)!r}")
        recipe_named(self.recipe)
        _check_operators(self.layer_operators)
        if self.num_hidden_layers is None:
            self.num_hidden_layers = LAYERS if self.layer_operators is None else len(self.layer_operators)
        if self.layer_operators is None:
            if recipe_named(self.recipe).fields:
                raise ValueError(f"a recipe is more than its name: use ChiarConfig.from_recipe({self.recipe!r})")
            self.layer_operators = _plan(self.recipe, self.num_hidden_layers)
        self.layer_operators = [list(operators) for operators in self.layer_operators]
        _check_size("hidden_size", self.hidden_size)
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        fields = [field.name for field in dataclasses.fields(ChiarConfig)]
        for name in kwargs:
            near = difflib.get_close_matches(name, fields, 1, NEARLY)
            if near:
                warnings.warn(f"the configuration has no field {name!r}: did you mean {near[0]!r}?", stacklevel=2)
        if kwargs.get("num_labels") is not None:
            _check_size("num_labels", kwargs["num_labels"], LONGEST)
        try:
            super().__post_init__(**{name: value for name, value in kwargs.items() if value is not None})
        except (AttributeError, LookupError, OverflowError, TypeError) as error:
            raise ValueError(f"a field that all models of transformers have does not fit: {error}") from error
        self.validate()

    @classmethod
    def from_recipe(cls, name: str, **fields: Any) -> Self:
        """The configuration of a recipe; any field may be given, and the plan of layers follows `num_hidden_layers`.

        Published thresholds belong to the published width and router: with another `hidden_size` they are left to
        calibration.
        Raises ValueError for names that are no fields.
        """
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)} - {"num_labels"})
        if "recipe" in fields:
            raise ValueError(f"a recipe is no field of recipe {name!r}: name {fields['recipe']!r} in its place")
        if unknown:
            raise ValueError(f"unknown field of the configuration: {', '.join(unknown)}")
        chosen = {"recipe": name} | recipe_named(name).fields | fields
        if "layer_operators" in fields and "num_hidden_layers" not in fields:
            chosen.pop("num_hidden_layers", None)
        published = recipe_named(name).fields
        if any(chosen.get(field) != published.get(field) for field in ("hidden_size", "router")):
            for threshold in ("tau_low", "tau_high"):
                chosen[threshold] = fields.get(threshold)
        if chosen.get("layer_operators") is None:
            layers = chosen.get("num_hidden_layers")
            chosen["layer_operators"] = _plan(name, LAYERS if layers is None else layers)
        return cls(**chosen)

    def twin(self) -> "ChiarConfig":
        """The same model with attention for all tokens in each layer, which ratios are measured against. Where layers
        have no projections it has fewer layers, so that it is as large; never more, and whole ones."""
        own = {field.name for field in dataclasses.fields(ChiarConfig)}
        own -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
        same = {name: getattr(self, name) for name in own - OF_ROUTING | {"num_labels"}}
        return ChiarConfig.from_recipe("full_attention", **same | {"num_hidden_layers": self._layers_of_attention()})

    def _layers_of_attention(self) -> int:
        """How many layers that attend come nearest to all of these in matrices: those of operators, and two of each
        feed-forward network, D by `intermediate_size`."""
        assert self.layer_operators is not None
        assert self.intermediate_size is not None
        network = 2 * self.hidden_size * self.intermediate_size
        mixers = {name: self._matrices(name) for name in {"attention"}.union(*self.layer_operators)}
        own = 0
        for names in self.layer_operators:
            own += network * (len(names) if self.feed_forward == "per_operator" else 1)
            own += sum(mixers[name] for name in names)
        return min(self.num_hidden_layers, max(1, round(own / (mixers["attention"] + network))))

    def _matrices(self, operator: str) -> int:
        """Numbers in the matrices of an operator."""
        with torch.device("meta"):
            mixer = mixer_class(operator).from_config(self)
        return sum(weight.numel() for weight in mixer.parameters() if weight.ndim > 1)

    @property
    def layer_types(self) -> list[str]:
        """What transformers builds the cache from: one `RoutedCacheLayer` per layer."""
        return ["chiaroscuro"] * self.num_hidden_layers

    @property
    def gives_shares(self) -> bool:
        """Whether layers route between two operators, of which the second has a share that a dense start can lower."""
        assert self.layer_operators is not None
        two, router = max(map(len, self.layer_operators)) == 2, router_class(self.router)
        if not two or not issubclass(router, BudgetRouter):
            return False
        return router.halves if self.routed_share is None else self.routed_share != 1.0

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """With a file beside it by which transformers finds the classes for `trust_remote_code=True` where nobody has
        imported this package, such as in the command line of lm-evaluation-harness."""
        self.auto_map = {auto: f"{REMOTE_MODULE}.{name}" for auto, name in _REMOTE_CLASSES.items()}
        super().save_pretrained(save_directory)
        names = ", ".join(sorted(_REMOTE_CLASSES.values()))
        (Path(save_directory) / f"{REMOTE_MODULE}.py").write_text(f"from chiaroscuro import {names}  # noqa: F401\n")
        if push_to_hub:  # only now, or the file would be missing there
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: transformers would have the sources of this class saved, which cannot be loaded one by one."""

    def validate(self) -> None:
        """Raises ValueError for what does not fit. Takes the place of transformers' own validation, which knows only
        its own layer types, and like it is called again before saving."""
        for name in (*_SIZES, "intermediate_size"):
            _check_size(name, getattr(self, name))
        if self.short_convolution != 0:
            _check_size("short_convolution", self.short_convolution, LONGEST)
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name, least in _NUMBERS.items():
            value = getattr(self, name)
            if not _is_number(value) or not least <= value <= sys.float_info.max:
                raise ValueError(f"{name} must be a number of at least {least:g}, got {value!r}")
        self._check_layers()
        self._check_router()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} attention heads"
            )
        if self.position_embedding == "rotary" and self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                f"rotary positions need an even head size, got {self.hidden_size} / {self.num_attention_heads}"
            )
        for task, labels in _items(self.task_labels):
            _check_size(f"task_labels[{task!r}]", labels, LONGEST)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            for token in value if isinstance(value, list) and name == "eos_token_id" else [value]:
                if token is not None and (isinstance(token, bool) or not isinstance(token, int)):
                    raise ValueError(f"{name} must be a token's id or none, got {value!r}")
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")

    def _check_layers(self) -> None:
        """The operators of each layer: known ones, and no more than the router takes."""
        assert self.layer_operators is not None
        if len(self.layer_operators) != self.num_hidden_layers:
            raise ValueError(
                f"num_hidden_layers is {self.num_hidden_layers} and layer_operators lists {len(self.layer_operators)} "
                "layers: give both, or one of them"
            )
        for layer, operators in enumerate(self.layer_operators):
            if not operators:
                raise ValueError(f"layer {layer} has no operator; give each layer at least one")
            if len(set(operators)) < len(operators):
                raise ValueError(f"layer {layer} lists an operator twice: {', '.join(operators)}")
            for operator in operators:
                mixer_class(operator)
            most = router_class(self.router).most_operators
            if most is not None and len(operators) > most:
                raise ValueError(
                    f"layer {layer} has {len(operators)} operators; router {self.router!r} takes at most {most}"
                )

    def _check_router(self) -> None:
        """What the router can do with the other fields, its share and its thresholds."""
        assert self.layer_operators is not None
        hard = router_class(self.router).hard
        if self.dispatch == "sparse" and not hard:
            raise ValueError(f"router {self.router!r} blends all operators, so dispatch must be 'auto' or 'dense'")
        if self.attention_keys == "routed" and not hard:
            raise ValueError(f"router {self.router!r} blends all operators, so attention_keys must be 'all'")
        if issubclass(router_class(self.router), BenefitRouter) and self.collapse_weight > 0.0:
            raise ValueError(
                f"router {self.router!r} would take the gradient of the collapse regulariser for a gain: leave "
                "collapse_weight at 0, or take another router"
            )
        if self.routed_share is not None:
            check_share(self.routed_share)
            if not issubclass(router_class(self.router), BudgetRouter):
                raise ValueError(f"router {self.router!r} keeps to no share: leave routed_share out")
            most = max(map(len, self.layer_operators))
            if most != 2:
                has = f"a layer has {most}" if most > 2 else "no layer has two"
                raise ValueError(f"routed_share parts the tokens between two operators, and {has}")
        if (self.tau_low is None) != (self.tau_high is None):
            raise ValueError("give both tau_low and tau_high, or neither")
        if self.tau_low is not None and self.tau_high is not None:
            if router_class(self.router) is not ThresholdRouter:
                raise ValueError(f"router {self.router!r} takes no thresholds: leave tau_low and tau_high out")
            if not _is_number(self.tau_low) or not _is_number(self.tau_high):
                raise ValueError(f"tau_low and tau_high must be numbers, got {self.tau_low!r} and {self.tau_high!r}")
            check_thresholds(self.tau_low, self.tau_high)


def _plan(recipe: str, layers: Any) -> list[list[str]]:
    """The operators of each layer, by a recipe."""
    _check_size("num_hidden_layers", layers, LONGEST)
    return recipe_named(recipe).plan(layers)


def _check_size(name: str, value: Any, most: int = 2**63 - 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")
    if value > most:
        raise ValueError(f"{name} is {value}, and at most {most} are accepted")


def _check_operators(layers: Any) -> None:
    listed = isinstance(layers, list | tuple) and all(isinstance(names, list | tuple) for names in layers)
    if layers is not None and not (listed and all(isinstance(name, str) for names in layers for name in names)):
        raise ValueError(f"layer_operators must list the names of operators per layer, got {layers!r}")


def _items(labels: Any) -> list[tuple[str, Any]]:
    if labels is not None and not isinstance(labels, dict):
        raise ValueError(f"task_labels must give a number of labels per task, got {labels!r}")
    return list((labels or {}).items())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
