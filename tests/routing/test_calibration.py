"""Thresholds and bandwidths from data."""

from contextlib import nullcontext
from dataclasses import astuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import VOCAB, D, ids, tiny_model

from chiaroscuro.flops import executed_forward_flops
from chiaroscuro.mixers import NO_CONTEXT, Context, RBFMixer
from chiaroscuro.ops import NotFinite, spectral_entropy
from chiaroscuro.routing import BenefitRouter, ThresholdRouter, at_share, calibrate, follow, forced
from chiaroscuro.routing.thresholds import between


def seen_entropies(model, input_ids):
    return {trace.layer: trace.entropy for trace in model(input_ids, output_routing=True).routing}


@pytest.mark.parametrize("recipe", ["spectral", "v2", "v1_three_operator"])
def test_each_layer_gets_the_percentiles_of_what_it_sees_once_all_are_set(recipe):
    model, text = tiny_model(recipe), ids(8, 64)
    found = calibrate(model, text)
    entropies = seen_entropies(model, text)
    assert [layer.layer for layer in found] == list(entropies)
    for layer in found:
        router = model.model.layers[layer.layer].mixer.router
        assert router.thresholds.tolist() == [layer.low, layer.high]
        below = [float((entropies[layer.layer] < threshold).double().mean()) for threshold in (layer.low, layer.high)]
        commonest = int(text.flatten().bincount().max()) / text.numel()  # in the lowest layer those are not parted
        wanted = [1 / 3, 2 / 3] if router.num_operators == 3 else [1 / 2, 1 / 2]
        assert below == pytest.approx(wanted, abs=commonest / 2)
        assert layer.mean == pytest.approx(float(entropies[layer.layer].mean()))


@pytest.mark.parametrize("router", ["threshold", "learned"])
@pytest.mark.parametrize("share", [None, 0.3])
def test_no_threshold_lies_on_a_score(router, share):
    """In the lowest layer the score is that of the token, and each of them comes more than once."""
    model, text = tiny_model(router=router, routed_share=share, layer_operators=[["dct", "attention"]]), ids(8, 128)
    given = []
    watched = model.model.layers[0].mixer.router
    watched.register_forward_pre_hook(lambda module, args: given.append(module.score(*args[:2])))
    calibrate(model, text)
    assert (given[0].flatten()[:, None] - watched.thresholds).abs().min() > 1e-6


def test_scores_that_are_all_equal_go_one_way():
    same = torch.full((5,), 0.25)
    assert between(same, 1 / 3) < 0.25 < between(same, 2 / 3)


@pytest.mark.parametrize("N", [4096, 1_000_000])
@pytest.mark.parametrize("outlier", [0.0, 1000.0])
def test_many_scores_and_one_far_from_the_others_are_parted_where_they_should(N, outlier):
    scores = torch.randn(N, generator=torch.Generator().manual_seed(0))
    scores[0] += outlier
    for part in (0.125, 0.5, 0.75):
        assert float((scores < between(scores, part)).double().mean()) == pytest.approx(part, abs=1e-3)


def test_a_group_of_scores_that_are_equal_but_for_rounding_is_not_parted():
    """Where the share would part it, the threshold goes to that side of it which is nearer."""
    low, group, high = torch.linspace(0.1, 0.4, 30), 0.5 + 5e-8 * torch.arange(40), torch.linspace(0.6, 0.9, 30)
    scores = torch.cat((low, group, high))
    assert int((scores < between(scores, 0.45)).sum()) == 30
    assert int((scores < between(scores, 0.55)).sum()) == 70


def test_scores_that_cannot_be_parted_are_refused():
    with pytest.raises(ValueError, match="no scores"):
        between(torch.empty(0), 0.5)
    with pytest.raises(NotFinite, match="the score of a router"):
        between(torch.tensor([0.1, torch.nan]), 0.5)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=50), st.floats(0, 1))
def test_a_threshold_lies_between_two_scores_as_near_to_its_part_as_any(values, part):
    scores = torch.tensor(values, dtype=torch.float32)
    place = between(scores, part)
    assert place not in values
    parts = [float((scores < value).double().mean()) for value in [*values, 21]]
    assert abs(float((scores < place).double().mean()) - part) == pytest.approx(min(abs(p - part) for p in parts))


def test_about_half_of_the_tokens_then_go_to_attention():
    model, text = tiny_model(hidden_size=64), ids(8, 128)
    calibrate(model, text)
    for trace in model(text, output_routing=True).routing:
        assert trace.shares()["attention"] == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("router", ["threshold", "learned"])
@pytest.mark.parametrize("share", [0.125, 0.75])
def test_with_a_share_that_many_go_to_attention(router, share):
    model, text = tiny_model(hidden_size=64, router=router, routed_share=share), ids(8, 128)
    calibrate(model, text)
    for trace in model(text, output_routing=True).routing:
        assert trace.shares()["attention"] == pytest.approx(share, abs=0.06)


def test_with_three_operators_each_takes_a_third():
    model, text = tiny_model(layer_operators=[["dct", "rbf", "attention"], ["attention"]]), ids(8, 64)
    calibrate(model, text)
    (trace,) = model(text, output_routing=True).routing
    assert list(trace.shares().values()) == pytest.approx([1 / 3] * 3, abs=1 / VOCAB)  # a token has one entropy here


def test_the_first_layers_entropy_is_that_of_the_normed_embedding():
    model, text = tiny_model(layer_operators=[["dct", "attention"]], short_convolution=0), ids(4, 32)
    calibrate(model, text)
    body = model.model
    x = body.layers[0].mixer_norm(body.embedding_norm(body.embed_tokens(text)))
    torch.testing.assert_close(seen_entropies(model, text)[0], spectral_entropy(x))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_and_the_hooks_are_left_as_they_were(training):
    model = tiny_model().train(training)
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    calibrate(model, ids(2, 16), fit_mixers=True)
    assert [module.training for module in model.modules()] == modes
    thresholds = [m.thresholds.clone() for m in model.modules() if isinstance(m, ThresholdRouter)]
    model(ids(2, 16, seed=5))
    after = [m.thresholds for m in model.modules() if isinstance(m, ThresholdRouter)]
    assert all(torch.equal(before, now) for before, now in zip(thresholds, after, strict=True))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_calibration_fills_no_cache():
    model, caches = tiny_model("chiar", router="threshold"), []
    model.model.register_forward_hook(lambda module, args, output: caches.append(output.past_key_values))
    calibrate(model, ids(2, 32))
    assert caches == [None]


def test_other_routers_have_nothing_to_calibrate():
    for router in ("soft", "hard", "random", "interleaved"):
        model = tiny_model(router=router)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert calibrate(model, ids(2, 16)) == []
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_hashes_leave_the_share_above_their_thresholds_that_they_are_to_leave():
    model, text = tiny_model(router="hash", routed_share=0.25), ids(8, 64)
    calibrate(model, text)
    for trace in model(text, output_routing=True).routing:
        assert trace.shares()["attention"] == pytest.approx(0.25, abs=1 / VOCAB)
        assert all(len(set(trace.choice[text == token].tolist())) == 1 for token in text.unique())


def test_the_learned_router_gets_the_percentiles_of_its_score():
    model, text = tiny_model(router="learned", hidden_size=64), ids(8, 128)
    calibrate(model, text)
    for trace in model(text, output_routing=True).routing:
        assert trace.shares()["attention"] == pytest.approx(0.5, abs=0.06)


def test_a_compiled_model_is_calibrated_and_overruled_like_any_other():
    model, text = tiny_model(layer_operators=[["dct", "attention"]]), ids(4, 32)
    compiled = torch.compile(model, backend="eager")
    routers = [module for module in model.modules() if isinstance(module, ThresholdRouter)]
    with torch.no_grad():
        compiled(text, output_routing=True)
        before = [router.thresholds.tolist() for router in routers]
        assert len(calibrate(compiled, text)) == len(routers)
        assert [router.thresholds.tolist() for router in routers] != before
        with at_share(model, 1.0):
            assert all(trace.shares()["attention"] == 1.0 for trace in compiled(text, output_routing=True).routing)
        with forced(routers[0], torch.zeros_like(text)):
            assert compiled(text, output_routing=True).routing[0].shares()["attention"] == 0.0
        expected = model(text).logits
        torch.testing.assert_close(compiled(text).logits, expected)


@pytest.mark.parametrize("fields", [{}, {"layer_operators": [["rbf", "attention"]]}])
@pytest.mark.parametrize("padding", [slice(12), slice(8, 20)])
def test_nothing_is_taken_of_padding(fields, padding):
    text = ids(2, 20)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[:, padding] = 0
    padded, alone = tiny_model(**fields), tiny_model(**fields)
    found = calibrate(padded, text.where(mask.bool(), 0), mask, fit_mixers=True)
    for layer, expected in zip(found, calibrate(alone, text[:, mask[0].bool()], fit_mixers=True), strict=True):
        assert astuple(layer) == pytest.approx(astuple(expected))
    for tensor, expected in zip(padded.state_dict().values(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, expected)


class Later(BenefitRouter):
    """Reads where a token stands, and which one it is."""

    def score(self, x_BTD, entropy_BT, context=NO_CONTEXT):
        return (context.positions_BT + context.ids_BT / VOCAB).float().expand(x_BTD.shape[:2])


def test_a_score_of_what_is_known_of_the_tokens_is_the_same_wherever_it_is_asked_for():
    model, text = tiny_model(router="benefit", layer_operators=[["dct", "attention"]], routed_share=0.25), ids(4, 20)
    model.model.layers[0].mixer.router = Later(D, 2, share=0.25)
    calibrate(model, text)
    for _ in range(2):
        (trace,) = model.eval()(text, output_routing=True).routing
        assert torch.equal(trace.choice, (torch.arange(20) >= 15).long().expand(4, 20))
        model.train()(text)
        follow(model)


def test_what_was_scored_last_is_no_part_of_a_model(tmp_path):
    model = tiny_model("chiar", routed_share=0.5).train()
    router = next(module for module in model.modules() if isinstance(module, ThresholdRouter))
    executed_forward_flops(model, ids(2, 20), training=True)
    assert router.seen is None  # nothing is learned from it
    model(ids(2, 20))
    assert router.seen is not None
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert all(module.seen is None for module in loaded.modules() if isinstance(module, ThresholdRouter))
    assert router.seen is not None


@pytest.mark.parametrize("padding", [slice(0), slice(12), slice(8, 20)])
@pytest.mark.parametrize("router", ["threshold", "learned", "benefit"])
def test_thresholds_follow_the_scores_of_a_pass_in_training(router, padding):
    model, text = tiny_model(router=router, layer_operators=[["dct", "attention"]], routed_share=0.25), ids(4, 20)
    mask = torch.ones(4, 20, dtype=torch.long)
    mask[:, padding] = text[:, padding] = 0
    (deciding,) = (module for module in model.modules() if isinstance(module, ThresholdRouter))
    before = deciding.thresholds.clone()
    follow(model)  # nothing was seen yet
    model(ids(4, 20))
    follow(model)  # in evaluation neither
    assert torch.equal(deciding.thresholds, before)
    model.train()(text, attention_mask=mask)
    assert torch.equal(deciding.thresholds, before)
    follow(model)
    (trace,) = model.eval()(text, attention_mask=mask, output_routing=True).routing
    assert trace.gates[mask.bool()][:, 1].mean() == 0.25
    thresholds = deciding.thresholds.clone()
    follow(model)  # nothing was seen since
    x_BTD, entropy_BT = torch.randn(4, 20, D), torch.rand(4, 20)
    deciding.train().gates(x_BTD, entropy_BT, Context(valid_BT=torch.zeros(4, 20)))
    follow(model)  # nothing but padding
    assert torch.equal(deciding.thresholds, thresholds)
    deciding.gates(torch.full_like(x_BTD, torch.nan), torch.full_like(entropy_BT, torch.nan), Context())
    with pytest.raises(NotFinite, match="the score of a router"):
        follow(model)


@pytest.mark.parametrize("router", ["learned", "benefit"])
def test_thresholds_follow_what_a_step_learns(router):
    model, text = tiny_model(router=router, layer_operators=[["dct", "attention"]], routed_share=0.25), ids(4, 20)
    (deciding,) = (module for module in model.modules() if isinstance(module, ThresholdRouter))
    model.train()(text)
    with torch.no_grad():
        deciding.linear.weight.neg_()
    follow(model)
    (trace,) = model.eval()(text, output_routing=True).routing
    assert trace.gates[..., 1].mean() == 0.25


@pytest.mark.parametrize("padding", [slice(12), slice(8, 20)])
def test_the_share_at_hand_is_that_of_the_tokens_which_are_not_padding(padding):
    model, text = tiny_model(layer_operators=[["dct", "attention"]]), ids(2, 20)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[:, padding] = text[:, padding] = 0
    with at_share(model, 0.5):
        (trace,) = model(text, attention_mask=mask, output_routing=True).routing
    assert trace.gates[mask.bool()][:, 1].mean() == 0.5


def test_a_forward_method_that_is_compiled_is_calibrated_and_what_is_not_compiled_is_left_alone(monkeypatch):
    model, text = tiny_model(layer_operators=[["dct", "attention"]]), ids(4, 32)
    stances = []
    monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: stances.append(stance) or nullcontext())
    assert len(calibrate(model, text)) == 1
    assert stances == []
    model.forward = torch.compile(model.forward, backend="eager")
    assert len(calibrate(model, text)) == 1
    assert stances == ["force_eager"]


def test_fitting_sets_bandwidths_only_when_asked():
    model = tiny_model("v1_three_operator")
    gammas = [m.log_gamma.detach().clone() for m in model.modules() if isinstance(m, RBFMixer)]
    calibrate(model, ids(4, 32))
    assert [m.log_gamma.detach().clone() for m in model.modules() if isinstance(m, RBFMixer)] == gammas
    calibrate(model, ids(4, 32), fit_mixers=True)
    assert [m.log_gamma.detach().clone() for m in model.modules() if isinstance(m, RBFMixer)] != gammas
