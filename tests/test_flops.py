"""What is planned is what is executed."""

import pytest
import torch

from chiaroscuro import ChiarForCausalLM, ChiarForSequenceClassification, calibrate
from chiaroscuro.flops import executed_flops, executed_forward_flops, flops_ratios
from chiaroscuro.routing import ThresholdRouter, router_class
from tests.helpers import SMALL_RECIPES, tiny_config

VOCAB = 300


def model_and_ids(recipe, B=2, T=96, D=64, **fields):
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": D, "num_attention_heads": 4, "rbf_features": 64}
    config = tiny_config(recipe, **sizes | fields)
    return ChiarForCausalLM(config).eval(), torch.randint(VOCAB, (B, T))


def assert_planned_is_executed(model, input_ids):
    with torch.no_grad():
        routing = model(input_ids, output_routing=True).routing
    planned = model.flops(*input_ids.shape, routing=routing).total
    assert executed_forward_flops(model, input_ids) == pytest.approx(planned, rel=0.02)


@pytest.mark.parametrize("recipe", SMALL_RECIPES)
@pytest.mark.parametrize(("B", "T", "D"), [(2, 64, 64), (1, 193, 64), (3, 256, 128)])
@pytest.mark.parametrize("dispatch", ["dense", "sparse"])
@pytest.mark.parametrize("keys", ["all", "routed"])
def test_planned_equals_executed_in_every_recipe(recipe, B, T, D, dispatch, keys):
    assert_planned_is_executed(*model_and_ids(recipe, B, T, D, dispatch=dispatch, attention_keys=keys))


@pytest.mark.parametrize("recipe", ["chiar", "v1_three_operator"])
@pytest.mark.parametrize("router", ["soft", "hard", "random"])
def test_planned_equals_executed_for_every_router(recipe, router):
    assert_planned_is_executed(*model_and_ids(recipe, router=router))


def test_a_twin_runs_the_attention_of_its_model():
    model, input_ids = model_and_ids("full_attention")
    model.set_attn_implementation("eager")
    assert flops_ratios(model, input_ids)["executed_ratio"] == 1.0


@pytest.mark.parametrize("name", ["soft", "hard", "learned", "benefit", "random", "interleaved"])
def test_a_router_plans_what_it_executes(name):
    router, x = router_class(name)(64, 2).eval(), torch.randn(2, 100, 64)
    assert router.flops(200) == executed_flops(lambda: router(x, torch.rand(2, 100)))


@pytest.mark.parametrize("keys", ["all", "routed"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_planned_equals_executed_at_every_share(share, keys):
    model, input_ids = model_and_ids("spectral", T=256, attention_keys=keys)
    with torch.no_grad():
        for layer in model.model.layers[1:3]:
            entropy = next(t for t in model(input_ids, output_routing=True).routing if t.layer == layer.index).entropy
            bound = {0.0: 1.0, 1.0: 0.0}.get(share, float(entropy.quantile(1 - share)))
            layer.mixer.router.set_thresholds(bound, bound)
        shares = [trace.shares()["attention"] for trace in model(input_ids, output_routing=True).routing]
    assert shares == pytest.approx([share] * 2, abs=0.02)
    assert_planned_is_executed(model, input_ids)


@pytest.mark.parametrize("keys", ["all", "routed"])
@pytest.mark.parametrize("share_of_rows", [1 / 4, 1 / 2])
def test_planned_equals_executed_when_rows_differ_in_how_many_tokens_they_route(share_of_rows, keys):
    model, input_ids = model_and_ids("spectral", B=4, T=256, router="hard", attention_keys=keys)
    with torch.no_grad():
        for layer in model.model.layers[1:3]:  # ids of the upper half go to attention, by their first channel
            layer.mixer.router.linear.weight.zero_()[1, 0] = 100.0
        model.model.embed_tokens.weight[: VOCAB // 2, 0] = -1.0
        model.model.embed_tokens.weight[VOCAB // 2 :, 0] = 1.0
    busy = torch.arange(4) < 4 * share_of_rows
    input_ids = input_ids % (VOCAB // 2) + busy[:, None] * (VOCAB // 2)
    with torch.no_grad():
        shares = [trace.shares()["attention"] for trace in model(input_ids, output_routing=True).routing]
    assert shares == pytest.approx([share_of_rows] * 2, abs=0.02)
    assert_planned_is_executed(model, input_ids)


@pytest.mark.parametrize(
    ("recipe", "share"),
    [("full_attention", None)]
    + [(recipe, share) for recipe in ("chiar", "v2", "v1_dct_attention") for share in (None, 0.25)],
)
@pytest.mark.parametrize("keys", ["all", "routed"])
def test_planned_equals_executed_in_generation(recipe, keys, share):
    past, steps = 100, 16
    fields = {"router": "interleaved", "attention_keys": keys, "routed_share": share}
    model, input_ids = model_and_ids(recipe, B=1, T=past + steps, **fields)

    def generate() -> None:
        for t in range(past, past + steps):
            model(input_ids[:, t : t + 1], past_key_values=cache)

    with torch.no_grad():
        routing = model(input_ids, output_routing=True).routing
        cache = model(input_ids[:, :past]).past_key_values
        executed = executed_flops(generate)
    assert executed == pytest.approx(model.flops(1, steps, routing, past=past).total, rel=0.02)
    assert executed == pytest.approx(model.flops(1, steps, past=past).total, rel=0.02)  # interleaved: as expected


def test_windows_execute_the_pairs_of_whole_blocks():
    """Of which those that a token may see are planned."""
    executed, D = [], 64
    for window in (8, 4):
        model, input_ids = model_and_ids("full_attention", 2, 24, D, layer_operators=[["window"]], window=window)
        seen = 24 * window - window * (window - 1) / 2
        assert model.flops(2, 24).attention == 4 * 2 * D * seen
        executed.append(executed_forward_flops(model, input_ids))
    assert executed[0] - executed[1] == 4 * 2 * D * 24 * ((8 + 7) - (4 + 3))


def test_full_attention_by_hand():
    B, T, D, L = 2, 96, 64, 4
    model, _ = model_and_ids("full_attention", B, T, D)
    planned = model.flops(B, T)
    assert planned.attention == L * B * 2 * 2 * D * T * (T + 1) / 2
    assert planned.mixing == L * B * T * 2 * 4 * D * (D + 1)  # four projections and a convolution over four tokens
    assert planned.feed_forward == L * B * T * 2 * 8 * D * D
    assert planned.head == B * T * 2 * D * VOCAB
    assert planned.routing == 0
    assert planned.total == sum((planned.attention, planned.mixing, planned.feed_forward, planned.head))


@pytest.mark.parametrize(
    ("recipe", "ratio"),
    [("v1_dct_attention", 0.375), ("v1_three_operator", 0.375), ("chiar", 0.125), ("spectral", 0.5), ("v2", 0.5)],
)
def test_attention_that_the_recipes_plan_for(recipe, ratio):
    """62.5 % fewer attention FLOPs in the first version of the paper."""
    routed, full = model_and_ids(recipe)[0].flops(2, 128), model_and_ids("full_attention")[0].flops(2, 128)
    assert routed.attention / full.attention == pytest.approx(ratio)
    assert routed.total < full.total


@pytest.mark.parametrize("share", [0.125, 0.75])
def test_a_share_is_what_is_planned_for(share):
    full = model_and_ids("full_attention")[0].flops(2, 128)
    routed = model_and_ids("spectral", routed_share=share)[0].flops(2, 128)
    assert routed.attention / full.attention == pytest.approx((1 + 2 * share) / 4)


def test_routed_keys_cost_less_than_a_share():
    full, every, routed = (
        model_and_ids(recipe, **fields)[0].flops(1, 256)
        for recipe, fields in (("full_attention", {}), ("spectral", {}), ("spectral", {"attention_keys": "routed"}))
    )
    assert routed.attention / full.attention == pytest.approx((0.25 + 0.25 + 1) / 4, abs=0.01)
    assert routed.mixing < every.mixing


def test_the_published_architecture_run_densely_saves_almost_nothing():
    model, input_ids = model_and_ids("v2", T=256, D=128, dispatch="dense")
    assert 0.8 < flops_ratios(model, input_ids)["executed_ratio"] < 0.97


def test_ratios_are_against_the_twin():
    model, input_ids = model_and_ids("full_attention")
    assert flops_ratios(model, input_ids) == pytest.approx(
        {"attention_ratio": 1, "total_ratio": 1, "executed_ratio": 1, "training_ratio": 1}
    )
    model, input_ids = model_and_ids("spectral")
    for module in model.modules():
        if isinstance(module, ThresholdRouter):
            module.set_thresholds(1.0, 1.0)
    assert flops_ratios(model, input_ids)["attention_ratio"] == pytest.approx(0.25)


def test_ratios_of_a_few_sequences_at_a_time_are_those_of_all(monkeypatch):
    model, input_ids = model_and_ids("spectral", B=3)
    calibrate(model, input_ids)
    together = flops_ratios(model, input_ids)
    monkeypatch.setattr("chiaroscuro.flops.TOGETHER", 1)  # fewer tokens than one sequence has
    assert flops_ratios(model, input_ids) == pytest.approx(together)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_costs_nothing_that_is_told(side):
    model, input_ids = model_and_ids("spectral", B=4, T=64)
    calibrate(model, input_ids)
    mask = torch.ones_like(input_ids)
    mask[1:3, 40:] = 0
    mask = mask.flip(1) if side == "left" else mask
    nothing = torch.zeros_like(mask[:1])  # an empty sequence
    found = flops_ratios(model, torch.cat((input_ids, input_ids[:1])), torch.cat((mask, nothing)))
    whole, short = input_ids[[0, 3]], input_ids[1:3][mask[1:3].bool()].view(2, 40)
    twin = type(model)(model.config.twin())
    executed = [sum(executed_forward_flops(each, part) for part in (whole, short)) for each in (model, twin)]
    assert found["executed_ratio"] == pytest.approx(executed[0] / executed[1])


def test_what_a_router_explores_in_training_is_planned_executed_and_told():
    routed = {"router": "benefit", "routed_share": 0.25, "layer_operators": [["none", "attention"]] * 4}
    model, input_ids = model_and_ids("chiar", B=4, T=256, **routed)
    calibrate(model, input_ids)
    ratios = flops_ratios(model, input_ids)
    assert ratios["training_ratio"] > ratios["executed_ratio"] + 0.01
    with torch.no_grad():
        torch.manual_seed(0)
        routing = model.train()(input_ids, output_routing=True).routing
        torch.manual_seed(0)
        executed = executed_flops(lambda: model(input_ids, use_cache=False))
    attended = [float((trace.gates[..., 1] > 0).float().mean()) for trace in routing]
    assert attended == pytest.approx([0.25 + 0.75 / 8] * 4, abs=0.05)
    assert executed == pytest.approx(model.flops(*input_ids.shape, routing=routing).total, rel=0.02)


def test_the_counter_knows_causal_attention_its_backward_and_ffts():
    q = torch.randn(2, 3, 10, 8, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    causal = executed_flops(lambda: attend(q, q, q, is_causal=True))
    assert causal == 2 * 2 * 2 * 3 * 8 * 55
    assert executed_flops(lambda: attend(q, q, q)) == 2 * 2 * 2 * 3 * 8 * 100
    both = executed_flops(lambda: attend(q, q, q, is_causal=True).sum().backward())
    assert both == causal * (1 + 2.5)
    assert executed_flops(lambda: torch.fft.rfft(torch.randn(7, 16))) == 7 * 2.5 * 16 * 4
    assert executed_flops(lambda: torch.fft.irfft(torch.randn(7, 9, dtype=torch.complex64), n=16)) == 7 * 2.5 * 16 * 4


def test_the_counter_knows_products_of_groups_and_their_backward():
    a, weights = torch.randn(6, 8, requires_grad=True), torch.randn(2, 8, 4, requires_grad=True)
    ends = torch.tensor([2, 6], dtype=torch.int32)
    grouped = executed_flops(lambda: torch.nn.functional.grouped_mm(a, weights, offs=ends))
    assert grouped == 2 * 6 * 8 * 4
    both = executed_flops(lambda: torch.nn.functional.grouped_mm(a, weights, offs=ends).square().sum().backward())
    assert both == 3 * grouped


def test_flex_attention_is_not_counted_and_says_so():
    model, input_ids = model_and_ids("full_attention")
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="FLOPs of flex_attention are not counted"):
        flops_ratios(model, input_ids)


def test_the_classifier_reports_its_head():
    config = tiny_config("chiar", vocab_size=VOCAB, hidden_size=64, num_labels=5)
    model = ChiarForSequenceClassification(config).eval()
    input_ids = torch.randint(VOCAB, (2, 64))
    assert model.flops(2, 64).head == 2 * 2 * 64 * (64 + 5)
    assert_planned_is_executed(model, input_ids)


def test_dropout_of_attention_is_the_same_on_both_sides():
    model, input_ids = model_and_ids("full_attention", attention_dropout=0.1)
    assert flops_ratios(model, input_ids)["training_ratio"] == pytest.approx(1.0)
