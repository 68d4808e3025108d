"""Configurations and recipes."""

import pytest
from tests.helpers import tiny_config
from torch import nn

from chiaroscuro import RECIPES, ChiarConfig, ChiarForCausalLM
from chiaroscuro.routing import BenefitRouter, register_router

PAPER = ["v1_full_attention", "v1_three_operator", "v1_dct_attention", "v2_full_attention", "v2", "v2_400m"]


def test_the_recipes_that_others_call():
    assert list(RECIPES) == ["chiar", "full_attention", "spectral", *PAPER]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_survives_json(recipe, tmp_path):
    config = ChiarConfig.from_recipe(recipe)
    config.save_pretrained(tmp_path)
    assert ChiarConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("recipe", "layers"),
    [
        ("chiar", [["none"], ["none"], ["none"], ["none", "attention"]]),
        ("chiar", [["none"], ["none"], ["none", "attention"]]),
        ("chiar", [*([["none"]] * 3), ["none", "attention"], *([["none"]] * 5), ["none", "attention"], ["none"]]),
        ("full_attention", [["attention"]] * 4),
        ("spectral", [["dct"], ["dct", "attention"], ["dct", "attention"], ["attention"]]),
        ("v1_three_operator", [["dct"], ["dct", "rbf"], ["rbf", "attention"], ["attention"]]),
        ("v1_dct_attention", [["dct"], ["dct"], ["dct", "attention"], ["attention"]]),
        ("v2", [["dct"], ["dct", "attention"], ["dct", "attention"], ["attention"]]),
    ],
)
def test_the_plans_of_a_few_layers(recipe, layers):
    assert ChiarConfig.from_recipe(recipe, num_hidden_layers=len(layers)).layer_operators == layers


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("layers", [1, 2, 3, 5, 8])
def test_a_plan_follows_the_number_of_layers_and_has_attention(recipe, layers):
    config = ChiarConfig.from_recipe(recipe, num_hidden_layers=layers)
    assert len(config.layer_operators) == config.num_hidden_layers == layers
    if recipe == "chiar":
        assert config.layer_operators.count(["none", "attention"]) == 1
    else:
        assert config.layer_operators[-1] == ["attention"]
    if layers > 1 and "full" not in recipe:
        assert config.layer_operators[0] == (["none"] if recipe == "chiar" else ["dct"])


@pytest.mark.parametrize("recipe", PAPER)
def test_the_papers_recipes_are_faithful_but_for_the_leaking_gate(recipe):
    config = ChiarConfig.from_recipe(recipe)
    assert config.norm_placement == "post"
    assert not config.embedding_norm
    assert config.dropout == 0.1
    assert config.vocab_size == 50257
    assert config.intermediate_size == 4 * config.hidden_size
    assert config.position_embedding == ("learned" if recipe.startswith("v1") else "rotary")
    assert config.meta_router == ("causal" if recipe in ("v2", "v2_400m") else "none")


def test_published_thresholds_belong_to_the_published_width():
    assert ChiarConfig.from_recipe("v2_400m").tau_low == 0.8935
    assert ChiarConfig.from_recipe("v1_dct_attention").tau_high == 0.865
    narrow = ChiarConfig.from_recipe("v1_dct_attention", hidden_size=64)
    assert (narrow.tau_low, narrow.tau_high) == (None, None)
    other = ChiarConfig.from_recipe("v1_dct_attention", router="random")
    assert (other.tau_low, other.tau_high) == (None, None)
    given = ChiarConfig.from_recipe("v1_dct_attention", hidden_size=64, tau_low=0.8, tau_high=0.9)
    assert (given.tau_low, given.tau_high) == (0.8, 0.9)


def test_the_twin_is_full_attention_of_the_same_size():
    config = ChiarConfig.from_recipe("v2", hidden_size=64, num_hidden_layers=6, vocab_size=100)
    twin = config.twin()
    assert twin.layer_operators == [["attention"]] * 6
    assert (twin.hidden_size, twin.vocab_size, twin.router) == (64, 100, "recurrence")
    same = ("norm_placement", "dropout", "embedding_norm", "position_embedding", "max_position_embeddings")
    assert [getattr(twin, name) for name in same] == ["post", 0.1, False, "rotary", 8192]
    untied = tiny_config(tie_word_embeddings=False, num_labels=3, rope_base=500.0).twin()
    assert (untied.tie_word_embeddings, untied.num_labels, untied.rope_base) == (False, 3, 500.0)
    # So that of the paper is its baseline, but for what full attention has no use for.
    baseline = ChiarConfig.from_recipe("v2_full_attention", hidden_size=64, num_hidden_layers=6, vocab_size=100)
    unused = {name: getattr(baseline, name) for name in ("recipe", "dct_filter_start", "feed_forward")}
    assert twin.to_dict() | unused == baseline.to_dict()


def _matrices(config: ChiarConfig) -> int:
    """Numbers in projections and feed-forward networks, but for the vectors that score."""
    linear = [part.weight for part in ChiarForCausalLM(config).model.modules() if isinstance(part, nn.Linear)]
    return sum(weight.numel() for weight in linear if len(weight) > 1)


@pytest.mark.parametrize(("lower", "upper", "of_twin"), [(3, 1, 3), (3, 2, 4), (6, 4, 8)])
def test_the_twin_of_layers_without_projections_has_as_many_as_make_it_as_large(lower, upper, of_twin):
    operators = [["none"]] * lower + [["none", "attention"]] * upper
    config = tiny_config("chiar", layer_operators=operators, hidden_size=32)
    assert config.twin().layer_operators == [["attention"]] * of_twin
    assert _matrices(config) == _matrices(config.twin())


@pytest.mark.parametrize(("layers", "of_twin"), [(5, 4), (6, 4), (9, 6), (12, 9)])
def test_three_layers_of_chiar_are_about_as_large_as_two_of_full_attention(layers, of_twin):
    config = tiny_config("chiar", num_hidden_layers=layers, hidden_size=32)
    assert config.twin().layer_operators == [["attention"]] * of_twin
    assert _matrices(config) == pytest.approx(_matrices(config.twin()), rel=0.09)


@pytest.mark.parametrize("layers", [1, 2, 3, 6, 7, 12])
@pytest.mark.parametrize("intermediate_size", [32, 64, 128])
def test_no_other_number_of_layers_comes_nearer(layers, intermediate_size):
    sizes = {"hidden_size": 32, "intermediate_size": intermediate_size}
    assert_no_other_number_comes_nearer(tiny_config("chiar", num_hidden_layers=layers, **sizes), sizes)


@pytest.mark.parametrize("operators", [["rbf"], ["linear"], ["dct", "rbf"], ["linear", "attention"]])
def test_operators_of_one_matrix_are_counted_with_one(operators):
    config = tiny_config("chiar", hidden_size=32, layer_operators=[operators] * 8)
    assert_no_other_number_comes_nearer(config, {"hidden_size": 32})


def assert_no_other_number_comes_nearer(config: ChiarConfig, sizes: dict[str, int]) -> None:
    layers = config.num_hidden_layers
    of_twin = config.twin().num_hidden_layers
    apart = {
        each: abs(_matrices(tiny_config("full_attention", num_hidden_layers=each, **sizes)) - _matrices(config))
        for each in range(1, layers + 1)
    }
    assert apart[of_twin] == min(apart.values())


@pytest.mark.parametrize("recipe", PAPER)
def test_the_twin_of_a_published_recipe_has_its_layers(recipe):
    config = ChiarConfig.from_recipe(recipe)
    assert config.twin().num_hidden_layers == config.num_hidden_layers


def test_a_recipe_is_more_than_its_name():
    with pytest.raises(ValueError, match=r"a recipe is more than its name: use ChiarConfig.from_recipe\('v2'\)"):
        ChiarConfig(recipe="v2")
    assert ChiarConfig(recipe="full_attention").layer_operators == [["attention"]] * 5
    config = ChiarConfig.from_recipe("v2")
    assert ChiarConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@register_router("worth")
class _Derived(BenefitRouter):
    """A router of somebody else."""


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"recipe": "chair"}, "unknown recipe 'chair'; known recipes: chiar, full_attention, spectral, v1_full"),
        (
            {"router": "oracle"},
            "unknown router 'oracle'; known routers: benefit, hard, hash, interleaved, learned, random, ran",
        ),
        (
            {"layer_operators": [["fourier"]]},
            "unknown operator 'fourier'; known operators: attention, dct, identity, linear, none, rbf",
        ),
        ({"layer_operators": [["dct"], []]}, "layer 1 has no operator"),
        ({"layer_operators": [["dct", "dct"]]}, "lists an operator twice"),
        ({"layer_operators": [["none", "dct", "rbf", "attention"]]}, "router 'recurrence' takes at most 2"),
        ({"layer_operators": [["none", "dct", "rbf", "attention"]], "router": "threshold"}, "takes at most 3"),
        ({"layer_operators": [["none", "dct", "rbf"]], "router": "learned"}, "router 'learned' takes at most 2"),
        ({"hidden_size": 30}, "30 does not divide into 4"),
        ({"hidden_size": 12}, "even head size"),
        ({"router": "threshold", "tau_low": 0.9, "tau_high": 0.8}, "tau_low <= tau_high"),
        ({"router": "hash", "tau_low": 0.8, "tau_high": 0.9}, "router 'hash' takes no thresholds: leave tau_low"),
        ({"tau_low": 0.9}, "both tau_low and tau_high"),
        ({"routed_share": 1.5}, r"share must lie in \[0, 1\], got 1.5"),
        ({"router": "benefit", "collapse_weight": 0.1}, "leave collapse_weight at 0"),
        ({"router": "worth", "collapse_weight": 0.1}, "leave collapse_weight at 0"),
        ({"routed_share": 0.5, "router": "soft"}, "router 'soft' keeps to no share"),
        (
            {"routed_share": 0.5, "router": "threshold", "layer_operators": [["dct", "rbf", "attention"]]},
            "and a layer has 3",
        ),
        ({"routed_share": 0.5, "layer_operators": [["none"], ["attention"]]}, "and no layer has two"),
        ({"router": "soft", "dispatch": "sparse"}, "blends all operators, so dispatch must be"),
        ({"router": "soft", "attention_keys": "routed"}, "blends all operators, so attention_keys must be 'all'"),
        ({"meta_router": "oracle"}, "unknown meta_router 'oracle'; known: none, causal, paper"),
        ({"norm_placement": "sandwich"}, "known: pre, post"),
        ({"attention_keys": "some"}, "known: all, routed"),
        ({"dispatch": "fast"}, "known: auto, dense, sparse"),
        ({"feed_forward": "none"}, "known: shared, per_operator"),
        ({"position_embedding": "alibi"}, "known: rotary, learned"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive whole number, got 0"),
        ({"vocab_size": "many"}, "vocab_size must be a positive whole number, got 'many'"),
        ({"short_convolution": -1}, "short_convolution must be a positive whole number, got -1"),
        ({"hidden_size": 2.5}, "hidden_size must be a positive whole number, got 2.5"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        ChiarConfig(**fields)
    if "recipe" not in fields:
        with pytest.raises(ValueError, match=complaint):
            ChiarConfig.from_recipe("chiar", **fields)


def test_a_field_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="unknown field of the configuration: hiden_size, num_layers"):
        ChiarConfig.from_recipe("v2", hiden_size=3, num_layers=2)
    with pytest.raises(ValueError, match="a recipe is no field of recipe 'chiar': name 'spectral' in its place"):
        ChiarConfig.from_recipe("chiar", recipe="spectral")
    with pytest.warns(UserWarning, match="has no field 'routed_shar': did you mean 'routed_share'"):
        ChiarConfig(routed_shar=0.3)
    assert ChiarConfig(problem_type="regression", my_note="kept").my_note == "kept"
    assert ChiarConfig.from_recipe("v2", num_labels=3, id2label={0: "a", 1: "b", 2: "c"}).num_labels == 3


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"use_cache": "no"}, "use_cache must be true or false, got 'no'"),
        ({"embedding_norm": 1}, "embedding_norm must be true or false, got 1"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps must be a number of at least 0, got 'x'"),
        ({"rope_base": -1.0}, "rope_base must be a number of at least 1, got -1.0"),
        ({"initializer_range": float("nan")}, "initializer_range must be a number"),
        ({"dropout": "0.1"}, "dropout must be a number"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        ChiarConfig(**fields)


def test_layers_and_their_operators_have_to_agree(tmp_path):
    assert ChiarConfig(layer_operators=[["dct"], ["attention"]]).num_hidden_layers == 2
    assert ChiarConfig.from_recipe("v1_dct_attention", layer_operators=[["attention"]]).num_hidden_layers == 1
    with pytest.raises(ValueError, match="num_hidden_layers is 5 and layer_operators lists 1 layers"):
        ChiarConfig(num_hidden_layers=5, layer_operators=[["attention"]])
    small = ChiarConfig(vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2)
    ChiarForCausalLM(small).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_hidden_layers is 5 and layer_operators lists 3 layers"):
        ChiarForCausalLM.from_pretrained(tmp_path, num_hidden_layers=5)
