"""The model: what depends on what, padding, saving, and what is refused.

Shapes: B batch, T tokens, D model channels.
"""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import (
    HARD_ROUTERS,
    ROUTERS,
    SMALL_RECIPES,
    VOCAB,
    D,
    assert_causal_and_apart,
    every_recipe_router_and_keys,
    ids,
    routes,
    tiny_config,
    tiny_model,
)
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
)

from chiaroscuro import ChiarConfig, ChiarForCausalLM, ChiarForSequenceClassification, ChiarModel, calibrate
from chiaroscuro.mixers import NO_CONTEXT
from chiaroscuro.routing import utilisation, utilisation_entropy

every_recipe = pytest.mark.parametrize("recipe", SMALL_RECIPES)
every_router = pytest.mark.parametrize("router", ROUTERS)
# What routes nothing is the same under every router, as the test below says.
RECIPES_AND_ROUTERS = [
    (recipe, router) for recipe in SMALL_RECIPES for router in (ROUTERS if routes(recipe) else ROUTERS[:1])
]
every_recipe_and_router = pytest.mark.parametrize(("recipe", "router"), RECIPES_AND_ROUTERS)


@pytest.mark.parametrize("recipe", [recipe for recipe in SMALL_RECIPES if not routes(recipe)])
@every_router
def test_a_recipe_that_routes_nothing_is_the_same_under_every_router(recipe, router):
    model, other = tiny_model(recipe), tiny_model(recipe, router=router)
    assert {*model.state_dict()} == {*other.state_dict()}
    assert torch.equal(model(ids(2, 9)).logits, other(ids(2, 9)).logits)


@every_recipe_and_router
@given(
    B=st.integers(1, 2),
    T=st.sampled_from([1, 2, 5, 8]),
    keys=st.sampled_from(["all", "routed"]),
    seed=st.integers(0, 9),
)
def test_no_logit_depends_on_later_tokens_or_other_rows(recipe, router, B, T, keys, seed):
    model = tiny_model(recipe, router=router, attention_keys=keys if router in HARD_ROUTERS else "all")
    x = torch.randn(B, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert_causal_and_apart(lambda x: model(inputs_embeds=x).logits, x)


@every_recipe_router_and_keys
def test_changing_later_tokens_changes_no_earlier_logit(recipe, router, keys):
    """Beyond the gradient: the choices themselves, which have none, stay the same."""
    model = tiny_model(recipe, router=router, attention_keys=keys)
    first, second = ids(2, 12) % 5, ids(2, 12, seed=1) % 5
    second[:, :7] = first[:, :7]
    torch.testing.assert_close(model(second).logits[:, :7], model(first).logits[:, :7], atol=1e-12, rtol=0)
    second[0] = first[0]
    torch.testing.assert_close(model(second).logits[0], model(first).logits[0], atol=1e-12, rtol=0)


@every_recipe
def test_saved_and_loaded_models_give_identical_logits(recipe, tmp_path):
    model = ChiarForCausalLM(tiny_config(recipe)).eval()
    calibrate(model, ids(4, 32), fit_mixers=True)
    model.save_pretrained(tmp_path)
    for cls in (ChiarForCausalLM, AutoModelForCausalLM):
        loaded = cls.from_pretrained(tmp_path).eval()
        assert torch.equal(loaded(ids(2, 9)).logits, model(ids(2, 9)).logits)
    assert AutoConfig.from_pretrained(tmp_path).to_json_string() == model.config.to_json_string()
    body = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(body, ChiarModel)
    assert torch.equal(body(ids(2, 9)).last_hidden_state, model.model(ids(2, 9)).last_hidden_state)


@every_recipe
def test_classifiers_pool_what_is_not_padding_and_survive_saving(recipe, tmp_path):
    model = ChiarForSequenceClassification(tiny_config(recipe, num_labels=3)).eval()
    padded = torch.cat((torch.full((2, 3), 5), ids(2, 6)), 1)
    mask = (torch.arange(9) >= 3).long().expand(2, 9)
    plain = model(ids(2, 6), labels=torch.tensor([0, 2]))
    assert plain.logits.shape == (2, 3)
    torch.testing.assert_close(plain.loss, cross_entropy(plain.logits, torch.tensor([0, 2])))
    torch.testing.assert_close(model(padded, attention_mask=mask).logits, plain.logits, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(ids(2, 6)).logits, plain.logits)


def test_a_classifier_neither_makes_nor_takes_a_cache():
    model = ChiarForSequenceClassification(tiny_config(num_labels=3)).eval()
    assert "past_key_values" not in model(ids(2, 6), use_cache=True)
    for name in ("past_key_values", "cache"):
        with pytest.raises(ValueError, match="goes on from no cache"):
            model(ids(2, 6), **{name: DynamicCache(config=model.config)})


@every_recipe
def test_gradient_checkpointing_changes_no_gradient(recipe):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(recipe, router="hard", collapse_weight=0.1).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids(2, 8), labels=ids(2, 8), use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-12, rtol=0)


def test_nothing_goes_on_from_a_cache_where_layers_have_none():
    model = tiny_model()
    cache = DynamicCache(config=model.config)
    model.gradient_checkpointing_enable()
    model.train()(ids(2, 6), past_key_values=cache)
    assert cache.get_seq_length() == 0
    model.eval()(ids(2, 6), past_key_values=cache)
    with pytest.raises(ValueError, match="goes on from a cache in training with gradient checkpointing"):
        model.train()(ids(2, 2), past_key_values=cache)


def test_the_loss_is_the_cross_entropy_of_the_next_token():
    model, input_ids = tiny_model(), ids(2, 9)
    labels = input_ids.clone()
    labels[0, :4] = -100
    output = model(input_ids, labels=labels)
    expected = cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss.double(), expected, atol=1e-6, rtol=0)


def test_the_collapse_regulariser_takes_lambda_u_from_the_loss():
    plain, regularised = (tiny_model(router="soft", collapse_weight=weight) for weight in (0.0, 0.25))
    output = plain(ids(2, 9), labels=ids(2, 9), output_routing=True)
    U = torch.stack([utilisation_entropy(utilisation(trace.gates)) for trace in output.routing]).mean()
    penalised = regularised.train()(ids(2, 9), labels=ids(2, 9))
    assert penalised.routing is None
    torch.testing.assert_close(penalised.loss, output.loss - 0.25 * U, atol=1e-6, rtol=0)
    measured = regularised.eval()(ids(2, 9), labels=ids(2, 9))
    torch.testing.assert_close(measured.loss, output.loss, atol=1e-6, rtol=0)


def test_a_regulariser_that_is_not_reached_is_told_of():
    model = tiny_model("v1_three_operator", router="soft", collapse_weight=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(ids(2, 9))
        with torch.no_grad():
            model.train()(ids(2, 9))  # as where FLOPs are counted
    with pytest.warns(UserWarning, match="collapse_weight does nothing without labels"):
        model.train()(ids(2, 9))


def test_no_gradient_of_the_collapse_regulariser_passes_a_threshold():
    """So the paper's row "threshold with collapse regulariser" is its row "threshold"."""
    gradients = []
    for weight in (0.0, 0.25):
        model = tiny_model("v1_three_operator", collapse_weight=weight).train()
        model(ids(2, 9), labels=ids(2, 9)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, regularised in zip(*gradients, strict=True):
        assert (plain is None and regularised is None) or torch.equal(plain, regularised)


def test_a_trace_per_layer_with_a_choice():
    routing = tiny_model()(ids(2, 5), output_routing=True).routing
    assert [trace.layer for trace in routing] == [1, 2]
    for trace in routing:
        assert trace.operators == ("dct", "attention")
        assert trace.entropy.shape == trace.choice.shape == (2, 5)
        assert trace.gates.shape == (2, 5, 2)
        assert torch.equal(trace.gates.argmax(-1), trace.choice)
    assert tiny_model()(ids(2, 5)).routing is None


def test_a_layer_that_mixes_nothing_norms_and_runs_nothing_for_it():
    model = tiny_model("chiar")
    layer = model.model.layers[0]
    assert model.config.layer_operators[0] == ["none"]
    assert not list(layer.mixer_norm.parameters())
    layer.mixer.forward = None  # so that calling it fails
    seen = {}
    layer.register_forward_hook(lambda _, args, out: seen.update(before=args[0], after=out[0]))
    model(ids(2, 20))
    mixed = layer.short_convolution(seen["before"], NO_CONTEXT)
    torch.testing.assert_close(seen["after"], mixed + layer.feed_forwards[0](layer.feed_forward_norm(mixed)))


@every_recipe
def test_what_transformers_expects_of_a_model(recipe):
    model = tiny_model(recipe)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(model(ids(2, 5), output_hidden_states=True).hidden_states) == model.config.num_hidden_layers + 1
    assert model(ids(2, 5), return_dict=False)[0].shape == (2, 5, VOCAB)
    torch.testing.assert_close(model(ids(2, 5), logits_to_keep=1).logits, model(ids(2, 5)).logits[:, -1:])
    before = model(ids(2, 5)).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(ids(2, 5)).logits, before)
    model.resize_token_embeddings(VOCAB + 9)
    assert model(ids(2, 5)).logits.shape == (2, 5, VOCAB + 9)
    assert model.config.vocab_size == VOCAB + 9


@every_recipe
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_close_to_float32(recipe, dtype):
    model = ChiarForCausalLM(tiny_config(recipe)).eval()
    full = model(ids(2, 9) % 4).logits
    low = model.to(dtype)(ids(2, 9) % 4).logits
    assert low.dtype == dtype
    assert float((low.float() - full).abs().mean()) < 0.1 * float(full.abs().mean())


@pytest.mark.parametrize("router", [name for name in ROUTERS if name != "soft"])
@pytest.mark.parametrize("dispatch", ["dense", "sparse"])
def test_every_router_routes_in_half_precision(router, dispatch):
    model = ChiarForCausalLM(tiny_config("chiar", router=router, dispatch=dispatch)).bfloat16().train()
    output = model(ids(2, 9) % 4, labels=ids(2, 9) % 4)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert torch.isfinite(output.loss)


@every_recipe_and_router
def test_training_under_autocast_gives_finite_gradients_and_close_logits(recipe, router):
    model = ChiarForCausalLM(tiny_config(recipe, router=router)).train()
    full = model(ids(2, 9) % 4).logits
    with torch.autocast("cpu", torch.bfloat16):
        output = model(ids(2, 9) % 4, labels=ids(2, 9) % 4)
    output.loss.backward()
    assert float((output.logits.float() - full).abs().mean()) < 0.1 * float(full.abs().mean())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_hidden_states_are_what_the_layers_are_given():
    model, given = tiny_model("v2"), []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    states = model(ids(2, 6), output_hidden_states=True).hidden_states
    assert all(torch.equal(state, entered) for state, entered in zip(states[:-1], given, strict=True))


@pytest.mark.parametrize("recipe", ["chiar", "spectral", "v1_three_operator"])
def test_loading_in_bfloat16_keeps_the_calibrated_thresholds(recipe, tmp_path):
    model = ChiarForCausalLM(tiny_config(recipe)).eval()
    calibrate(model, ids(4, 32))
    model.save_pretrained(tmp_path)
    loaded = ChiarForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    wanted = {name: buffer for name, buffer in model.named_buffers() if name.endswith("thresholds")}
    assert wanted
    for name, buffer in loaded.named_buffers():
        if name in wanted:
            assert torch.equal(buffer, wanted[name])


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda model: model(torch.tensor([[1, VOCAB]])), f"token id {VOCAB} is outside the vocabulary of {VOCAB}"),
        (lambda model: model(torch.tensor([[1, -1]])), "token id -1 is outside the vocabulary"),
        (lambda model: model(ids(1, 33)), "33 tokens and the model takes at most 32"),
        (lambda model: model.generate(input_ids=ids(1, 33), max_new_tokens=9, pad_token_id=0), "at most 32"),
        (lambda model: model(ids(2, 5), attention_mask={"chiaroscuro": torch.ones(2, 5)}), r"\(2, 5\), got dict"),
        (lambda model: model(ids(2, 5), past_key_values=((), ())), "DynamicCache\\(config=model.config\\)"),
        (lambda model: model(ids(1, 4), cu_seq_lens_q=torch.tensor([0, 2, 4])), "cu_seq_lens_q: several texts packed"),
        (
            lambda model: model(
                ids(1, 5), position_ids=torch.tensor([[0, 0, 1, 0, 1]]), attention_mask=torch.tensor([[0, 1, 1, 1, 1]])
            ),
            "packed into one are not supported",
        ),
        (lambda model: model(ids(2, 5), attention_mask=torch.ones(2, 4)), r"\(2, 5\), got \(2, 4\)"),
        (lambda model: model(ids(2, 5), past_key_values=DynamicCache()), "DynamicCache\\(config=model.config\\)"),
        (
            lambda model: model(ids(1, 4), position_ids=torch.tensor([[0, 1, 0, 1]])),
            "packed into one are not supported",
        ),
        (lambda model: model(ids(1, 4), position_ids=torch.arange(3)[None]), r"shape \(1 or 1, 4\), got \(1, 3\)"),
        (lambda model: model(ids(3, 4), position_ids=ids(2, 4)), r"shape \(3 or 1, 4\), got \(2, 4\)"),
        (
            lambda model: model(inputs_embeds=torch.zeros(1, 2, D + 1)),
            rf"shape \(batch, tokens, {D}\) .* \(1, 2, {D + 1}\)",
        ),
        (lambda model: model(inputs_embeds=torch.zeros(2, D)), rf"shape \(batch, tokens, {D}\) .* \(2, {D}\)"),
        (lambda model: model(inputs_embeds=torch.zeros(1, 0, D)), rf"at least one of each, got \(1, 0, {D}\)"),
        (
            lambda model: model(ids(2, 5), past_key_values=DynamicCache(config=tiny_config(num_hidden_layers=3))),
            "not made for this model",
        ),
        (
            lambda model: model(ids(2, 5), past_key_values=DynamicCache(config=tiny_config(num_hidden_layers=5))),
            "not made for this model",
        ),
        (lambda model: model(torch.tensor([1, 2])), r"shape \(batch, tokens\) .* got \(2,\)"),
        (lambda model: model(ids(1, 0)), r"at least one of each, got \(1, 0\)"),
        (lambda model: model(ids(0, 3)), r"at least one of each, got \(0, 3\)"),
        (lambda model: model(), "either input_ids or inputs_embeds"),
        (lambda model: model(ids(1, 2), inputs_embeds=torch.zeros(1, 2, D)), "either input_ids or inputs_embeds"),
        (lambda model: model(inputs_embeds=torch.full((1, 2, D), float("nan")).double()), "NaN or infinity"),
    ],
)
def test_bad_input_is_refused(call, complaint):
    model = tiny_model(max_position_embeddings=32)
    with pytest.raises(ValueError, match=complaint):
        call(model)


@pytest.mark.parametrize("first", [-1, 31])
def test_positions_without_a_learned_vector_are_refused(first):
    model = tiny_model("v1_full_attention", max_position_embeddings=32)
    assert model(ids(1, 2), position_ids=torch.tensor([[30, 31]])).logits.shape == (1, 2, VOCAB)
    with pytest.raises(ValueError, match=r"position_ids must lie in \[0, 32\), where the model has learned positions"):
        model(ids(1, 2), position_ids=torch.tensor([[first, first + 1]]))
    with pytest.raises(ValueError, match="train a model with a larger max_position_embeddings"):
        model(ids(1, 33))


def test_the_full_size_model_has_the_published_parameters():
    with torch.device("meta"):
        model = ChiarForCausalLM(ChiarConfig.from_recipe("v2_400m"))
    assert model.num_parameters() == pytest.approx(400e6, rel=0.02)
    assert [len(operators) for operators in model.config.layer_operators] == [1] + [2] * 26 + [1]


def test_the_regulariser_refuses_checkpointing_that_would_lose_its_gradient():
    model = tiny_model(router="soft", collapse_weight=0.1)
    model.train().gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="gates come without a gradient"):
        model(ids(2, 8), labels=ids(2, 8), use_cache=False)
    with torch.no_grad():
        model.eval()(ids(2, 8), labels=ids(2, 8))


def test_a_head_is_trained_on_a_body_that_is_not_whatever_its_regulariser():
    model = ChiarForSequenceClassification(tiny_config(router="soft", collapse_weight=0.1, num_labels=3)).train()
    model.model.requires_grad_(False)
    model(ids(2, 8), labels=torch.tensor([0, 2])).loss.backward()
    assert all(weight.grad is not None for weight in model.classifier.parameters())


def test_the_mean_of_many_tokens_is_counted_beyond_the_precision_of_the_model():
    model = ChiarForSequenceClassification(tiny_config(num_labels=3)).eval()
    given = []
    model.classifier[0].register_forward_pre_hook(lambda module, args: given.append(args[0]))
    for dtype, value in ((torch.bfloat16, 1.0), (torch.float16, 60.0)):
        head = model.classifier.to(dtype)
        head(torch.full((1, 1501, D), value, dtype=dtype), torch.ones(1, 1501))
        assert torch.equal(given.pop(), torch.full((1, D), value, dtype=dtype))
