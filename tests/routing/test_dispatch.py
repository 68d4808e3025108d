"""Sparse dispatch is dense dispatch, in outputs and in every gradient.

Shapes: B batch, T tokens, D model channels.
"""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import HARD_ROUTERS, D, ids, tiny_model
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.functional import one_hot

from chiaroscuro.mixers import NO_CONTEXT, AttentionMixer, Context, DCTMixer
from chiaroscuro.ops import Chosen, spectral_entropy
from chiaroscuro.routing import RoutedMixer, Router, ThresholdRouter, register_router, router_class


def outputs_and_gradients(model, dispatch, input_ids, mask):
    for layer in model.model.layers:
        layer.mixer.dispatch = dispatch
    model.zero_grad()
    output = model(input_ids, attention_mask=mask, output_routing=True)
    weights = torch.randn(output.logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (output.logits * weights).sum().backward()
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }
    return output, gradients


def padding(kind, B, T):
    """A mask whose rows lack 0, 1, 2 ... tokens on one side, each keeping at least one."""
    if kind == "none":
        return None
    missing = torch.arange(B).clamp_max(T - 1)[:, None]
    place = torch.arange(T)[None]
    return ((place >= missing) if kind == "left" else (place < T - missing)).long()


def force(model, share):
    """Thresholds that send no token, every token, or some of them to the second operator."""
    for module in model.modules():
        if isinstance(module, ThresholdRouter) and share != "some":
            bound = 1e9 if share == "none" else -1e9
            module.set_thresholds(bound, bound)


@pytest.mark.parametrize("recipe", ["chiar", "spectral", "v1_three_operator", "v1_dct_attention", "v2"])
@pytest.mark.parametrize("router", HARD_ROUTERS)
@settings(max_examples=20)
@given(
    keys=st.sampled_from(["all", "routed"]),
    B=st.integers(1, 3),
    T=st.sampled_from([1, 2, 7, 20]),
    kind=st.sampled_from(["none", "left", "right"]),
    share=st.sampled_from(["none", "some", "all"]),
)
def test_sparse_equals_dense(recipe, router, keys, B, T, kind, share):
    model = tiny_model(recipe, router=router, attention_keys=keys)
    force(model, share)
    input_ids, mask = ids(B, T), padding(kind, B, T)
    dense, dense_gradients = outputs_and_gradients(model, "dense", input_ids, mask)
    sparse, sparse_gradients = outputs_and_gradients(model, "sparse", input_ids, mask)
    torch.testing.assert_close(sparse.logits, dense.logits, atol=1e-10, rtol=0)
    for name, gradient in dense_gradients.items():
        torch.testing.assert_close(sparse_gradients[name], gradient, atol=1e-10, rtol=1e-10, msg=name)


@pytest.mark.parametrize("recipe", ["chiar", "spectral", "v1_dct_attention", "v2"])
@pytest.mark.parametrize("router", ["benefit", "random_explored"])
@pytest.mark.parametrize("kind", ["none", "left"])
def test_sparse_equals_dense_while_tokens_are_explored(recipe, router, kind):
    """A token that is explored gets both operators, and the same ones are when a layer is run again for its gradient,
    after a first pass that knows nothing of gradients."""
    model, mask = tiny_model(recipe, router=router).train(), padding(kind, 3, 20)
    torch.manual_seed(0)
    dense, dense_gradients = outputs_and_gradients(model, "dense", ids(3, 20), mask)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    torch.manual_seed(0)
    sparse, sparse_gradients = outputs_and_gradients(model, "sparse", ids(3, 20), mask)
    assert any(((trace.gates > 0) & (trace.gates < 1)).any() for trace in sparse.routing)
    torch.testing.assert_close(sparse.logits, dense.logits, atol=1e-10, rtol=0)
    for name, gradient in dense_gradients.items():
        torch.testing.assert_close(sparse_gradients[name], gradient, atol=1e-10, rtol=1e-10, msg=name)


@pytest.mark.parametrize(("share", "expected"), [("none", 0.0), ("all", 1.0)])
def test_forced_shares_are_what_they_say(share, expected):
    model = tiny_model()
    force(model, share)
    for trace in model(ids(2, 9), output_routing=True).routing:
        assert trace.shares()["attention"] == expected


@pytest.mark.parametrize(("router", "sparse"), [("threshold", True), ("hard", True), ("random", True), ("soft", False)])
def test_auto_is_sparse_wherever_each_token_goes_to_one_operator(router, sparse):
    assert tiny_model(router=router).model.layers[1].mixer.sparse == sparse


@pytest.mark.parametrize("recipe", ["chiar", "spectral", "v1_three_operator"])
@pytest.mark.parametrize("router", HARD_ROUTERS)
def test_the_models_here_send_tokens_to_every_operator(recipe, router):
    """Without which comparing sparse with dense would compare nothing."""
    for trace in tiny_model(recipe, router=router)(ids(3, 20), output_routing=True).routing:
        assert min(trace.shares().values()) > 0.02, trace.shares()


@pytest.mark.parametrize("router", ["hard", "learned", "benefit", "soft"])
@pytest.mark.parametrize("dispatch", ["auto", "dense"])
def test_every_learned_router_of_a_model_gets_a_gradient(router, dispatch):
    model = tiny_model("v1_three_operator", router=router, dispatch=dispatch).train()
    model(ids(2, 9), labels=ids(2, 9)).loss.backward()
    for layer in (1, 2):
        assert model.model.layers[layer].mixer.router.linear.weight.grad.abs().max() > 0


@register_router("switch")
class SwitchRouter(Router):
    """The likeliest operator, its output times its probability (W. Fedus et al., "Switch Transformers", 2021)."""

    learned = True

    def __init__(self, hidden_size, num_operators, layer=0):
        super().__init__(hidden_size, num_operators, layer)
        self.linear = nn.Linear(hidden_size, num_operators)

    def forward(self, x_BTD, entropy_BT, context=NO_CONTEXT):
        probability_BTO = self.linear(x_BTD).softmax(-1)
        return probability_BTO * one_hot(probability_BTO.argmax(-1), self.num_operators)


@pytest.mark.parametrize("dispatch", ["sparse", "dense"])
@pytest.mark.parametrize("B", [1, 2])
def test_gates_that_are_not_one_weigh_outputs_with_and_without_gradients(dispatch, B):
    fields = {"layer_operators": [["dct", "attention"]] * 2, "router": "switch", "dispatch": dispatch}
    model = tiny_model("chiar", **fields)
    for T in (1, 8):
        expected = model(ids(B, T)).logits
        with torch.no_grad():
            torch.testing.assert_close(model(ids(B, T)).logits, expected, atol=1e-12, rtol=0)
        other = tiny_model("chiar", **fields | {"dispatch": "dense"})
        torch.testing.assert_close(other(ids(B, T)).logits, expected, atol=1e-10, rtol=0)


def test_sparse_dispatch_leaves_the_other_tokens_alone():
    """Each operator is shown as many rows as it has tokens, and no more."""
    mixer = RoutedMixer({"dct": DCTMixer(D), "attention": AttentionMixer(D, 2)}, ThresholdRouter(D, 2))
    rows = {}
    attention = mixer.mixers["attention"]
    for name, part in (("query", attention.query), ("out", attention.out)):
        part.register_forward_hook(lambda module, args, out, name=name: rows.update({name: out.shape[0]}))
    _, routing = mixer(torch.randn(3, 20, D))
    attended = int((routing.choice_BT == 1).sum())
    assert 0 < attended < 60
    assert rows == {"query": attended, "out": attended}


@pytest.mark.parametrize("router", ["learned", "benefit", "random", "interleaved"])
def test_entropies_that_no_router_reads_are_computed_when_somebody_asks(router, monkeypatch):
    model, input_ids = tiny_model(router=router), ids(2, 20)
    seen = []
    model.model.layers[1].mixer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with monkeypatch.context() as patch:
        patch.delattr(importlib.import_module("chiaroscuro.routing.dispatch"), "packed_dct_and_entropy")
        trace, *_ = model(input_ids, output_routing=True).routing
    torch.testing.assert_close(trace.entropy, spectral_entropy(seen[0]))
    assert not trace.entropy.requires_grad


def test_the_parts_work_alone_and_soft_gates_blend_by_definition():
    parts = {"dct": DCTMixer(D), "attention": AttentionMixer(D, 2)}
    mixer = RoutedMixer(parts, router_class("soft")(D, 2)).eval()
    x = torch.randn(2, 6, D)
    mixed, routing = mixer(x)
    expected = sum(routing.gates_BTO[..., index, None] * part(x) for index, part in enumerate(parts.values()))
    torch.testing.assert_close(mixed, expected)


def test_layers_that_make_no_sense_are_refused():
    two = {"dct": DCTMixer(D), "attention": AttentionMixer(D, 2)}
    with pytest.raises(ValueError, match="at least one operator"):
        RoutedMixer({})
    with pytest.raises(ValueError, match="2 operators need a router"):
        RoutedMixer(two)
    with pytest.raises(ValueError, match="1 operators take no router"):
        RoutedMixer({"dct": DCTMixer(D)}, ThresholdRouter(D, 2))
    for router in (ThresholdRouter(D, 3), router_class("soft")(D, 3)):
        with pytest.raises(ValueError, match="2 operators and a router that chooses between 3"):
            RoutedMixer(two, router)
    with pytest.raises(ValueError, match="blends them all"):
        RoutedMixer(two, router_class("soft")(D, 2), dispatch="sparse")


def test_one_operator_alone_goes_on_from_the_state_it_is_given():
    layer, x, state = RoutedMixer({"attention": AttentionMixer(8, 2)}), torch.randn(1, 6, 8), {}
    with torch.no_grad():
        pieces = [layer(x[:, t : t + 3], Context(state=state))[0] for t in (0, 3)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), layer(x)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("keys", ["all", "routed"])
@pytest.mark.parametrize("B", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_but_the_counts_makes_the_host_wait(keys, B, training, monkeypatch):
    """Tensors without values raise wherever Python wants one."""
    T = 16
    for module in ("dct", "entropy", "attention"):  # looked for on the CPU only
        monkeypatch.setattr(importlib.import_module(f"chiaroscuro.ops.{module}"), "require_finite", lambda *_: None)
    layer = RoutedMixer({"dct": DCTMixer(32), "attention": AttentionMixer(32, 2, keys)}, ThresholdRouter(32, 2))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.set_grad_enabled(training):
        x, table = torch.empty(B, T, 32), torch.empty(1, T, 16)
        with pytest.raises(DataDependentOutputException):
            layer(x, Context(rotary=(table, table)))
        monkeypatch.setattr(Chosen, "counts", [T // 2] * B, raising=False)
        out, _ = layer(x, Context(rotary=(table, table)))
        assert mode.is_our_fake(out)
        assert out.shape == (B, T, 32)
        if training:
            out.sum().backward()
