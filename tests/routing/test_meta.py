"""The MetaRouter, in the form that can be used and in the one that was published."""

from contextlib import nullcontext

import pytest
import torch
from tests.helpers import D, assert_causal_and_apart, ids, reach, tiny_model

from chiaroscuro.flops import executed_flops
from chiaroscuro.routing import MetaRouter


def test_the_causal_gate_is_that_of_the_prefix_mean():
    meta, x = MetaRouter(D).double(), torch.randn(2, 6, D, dtype=torch.float64)
    gate = meta(x)
    for t in range(6):
        torch.testing.assert_close(gate[:, t], (meta.gate(x[:, : t + 1].mean(1)) + meta.bias).sigmoid())


def test_padding_does_not_count_and_pieces_give_the_whole():
    meta, x = MetaRouter(D).double(), torch.randn(2, 7, D, dtype=torch.float64)
    valid = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7], dtype=torch.bool)
    whole = meta(x, valid)
    torch.testing.assert_close(whole[0, 2:], meta(x[:1, 2:])[0])
    state: dict[str, torch.Tensor] = {}
    pieces = [meta(x[:, part], valid[:, part], state) for part in (slice(0, 1), slice(1, 4), slice(4, 7))]
    torch.testing.assert_close(torch.cat(pieces, 1), whole)


def test_a_prefix_in_bfloat16_is_counted_beyond_256():
    meta, x = MetaRouter(D).bfloat16(), torch.randn(1, 600, D).bfloat16()
    state: dict[str, torch.Tensor] = {}
    steps = torch.cat([meta(x[:, t : t + 1], None, state) for t in range(600)], 1)
    assert int(state["count_B"]) == 600
    assert steps.dtype == torch.bfloat16
    torch.testing.assert_close(steps, meta(x), atol=1e-2, rtol=0)


def test_the_gate_starts_nearly_open_in_a_model():
    model = tiny_model("v2", meta_router="causal")
    fresh = type(model)(model.config)
    assert float(fresh.model.meta_router.bias) == 2.0
    gate = fresh(ids(2, 5)).meta_gate
    assert gate.shape == (2, 5, 1)
    assert float(gate.mean()) == pytest.approx(0.88, abs=0.01)


def test_the_gate_blends_the_first_layer_with_its_input():
    model, x = tiny_model("v2"), torch.randn(1, 4, D, dtype=torch.float64)
    with torch.no_grad():
        model.model.meta_router.bias.fill_(-1e9)
    skipped = model(inputs_embeds=x).logits
    with torch.no_grad():
        model.model.layers[0].feed_forward_norm.weight.mul_(5.0)
    torch.testing.assert_close(model(inputs_embeds=x).logits, skipped)


def test_the_published_meta_router_leaks_the_future_and_other_rows():
    """The one exception to causality, shown to be one: `meta_router="paper"`."""
    with pytest.warns(UserWarning, match="logits leak"):
        model = tiny_model("v2", meta_router="paper")
    x = torch.randn(2, 4, D, dtype=torch.float64)
    found = reach(lambda x: model(inputs_embeds=x).logits, x)
    assert found[0, 0, 0, 3], "a token should read the future here"
    assert found[0, 0, 1].all(), "a row should read the other here"
    with pytest.raises(AssertionError):
        assert_causal_and_apart(lambda x: model(inputs_embeds=x).logits, x)


@pytest.mark.parametrize("mode", ["causal", "paper"])
def test_the_planned_flops_of_the_gate_are_executed(mode):
    with pytest.warns(UserWarning, match="leak") if mode == "paper" else nullcontext():
        model = tiny_model("v2", meta_router=mode, num_hidden_layers=1, layer_operators=[["none"]])
    assert model.flops(2, 24).routing == executed_flops(lambda: model.model.meta_router(torch.randn(2, 24, D).double()))
