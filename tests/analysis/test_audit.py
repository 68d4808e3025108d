"""The audit passes what is sound and catches, by the right line, everything that is planted here.

Shapes: B batch, T tokens.
"""

import pytest
import torch
from tests.helpers import EXPLORING, SMALL_RECIPES, VOCAB, ids, tiny_config, tiny_model
from transformers import (
    Gemma3Config,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    XLNetConfig,
)

from chiaroscuro import ChiarForCausalLM, ChiarForSequenceClassification, calibrate, retrofit, set_share
from chiaroscuro.analysis import audit, subject
from chiaroscuro.mixers import AttentionMixer, RBFMixer
from chiaroscuro.modeling import ChiarModel
from chiaroscuro.routing import RoutedMixer, ThresholdRouter

FUTURE, ROWS, CACHE, DISPATCH, PADDING, FLOPS, THRESHOLDS, STARVING = (
    "no output depends on later tokens",
    "no output depends on other rows",
    "a cache gives what the full pass gives",
    "sparse dispatch gives what dense gives",
    "padding changes nothing",
    "planned FLOPs are executed",
    "thresholds are calibrated",
    "no operator starves",
)


def verdicts(model, input_ids):
    return {finding.check: finding.holds for finding in audit(model, input_ids)}


def failing(model, input_ids):
    return {check for check, holds in verdicts(model, input_ids).items() if holds is False}


def calibrated(recipe="spectral", **fields):
    model = tiny_model(recipe, **fields)
    calibrate(model, ids(8, 64))
    return model


@pytest.mark.parametrize("recipe", SMALL_RECIPES)
def test_no_shipped_recipe_fails(recipe):
    model, input_ids, _ = subject(recipe)
    found = verdicts(model, input_ids)
    assert False not in found.values()
    routed = any(len(operators) > 1 for operators in model.config.layer_operators)
    nothing_to_find = (
        {THRESHOLDS, STARVING} if recipe == "chiar" else set() if routed else {DISPATCH, THRESHOLDS, STARVING}
    )
    assert {check for check, holds in found.items() if holds is None} == nothing_to_find


def test_a_router_that_goes_by_ids_is_given_them():
    assert not failing(calibrated(router="hash"), ids(8, 64))


def gpt2(cls=GPT2LMHeadModel):
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_head=2, n_layer=2, vocab_size=VOCAB, bos_token_id=0, eos_token_id=0)
    return cls(config)


def test_a_model_of_transformers_is_held_to_what_it_can_be_held_to():
    found = verdicts(gpt2(), ids(3, 24))
    assert {check for check, holds in found.items() if holds} == {FUTURE, ROWS, CACHE, PADDING}
    assert False not in found.values()


def test_a_model_without_a_cache_of_keys_is_held_to_the_rest():
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    found = {finding.check: finding for finding in audit(MambaForCausalLM(MambaConfig(**sizes)), ids(3, 24))}
    assert {check for check, finding in found.items() if finding.holds} >= {FUTURE, ROWS}
    assert found[CACHE].holds is None


def test_whatever_a_check_ends_in_it_has_failed():
    model = gpt2()
    model.get_input_embeddings = lambda: model.absent
    found = {finding.check: finding for finding in audit(model, ids(3, 24))}
    assert found[FUTURE].holds is False
    assert found[FUTURE].detail.startswith("AttributeError")


class OffByOne(GPT2LMHeadModel):
    """Each token sees the one after it as well."""

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, **kwargs):
        T = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        seen = torch.ones(T, T).tril(1)
        mask = torch.where(seen > 0, 0.0, -torch.inf).double()[None, None]
        return super().forward(input_ids, inputs_embeds=inputs_embeds, attention_mask=mask, **kwargs)


@pytest.mark.parametrize(
    ("operators", "implementation", "reason"),
    [
        (["window"], "sdpa", "windows are computed in whole blocks for all tokens"),
        (["attention"], "eager", "eager attention computes later keys, too"),
        (["attention"], "sdpa", None),
    ],
)
def test_pairs_that_are_known_to_be_computed_unseen_are_no_failure(operators, implementation, reason):
    model = tiny_model("chiar", layer_operators=[operators, operators], window=64)
    model.set_attn_implementation(implementation)
    (found,) = (each for each in audit(model, ids(2, 128)) if each.check == FLOPS)
    assert found.holds is (None if reason else True)
    assert found.detail.startswith(f"{reason}: executed to planned 1." if reason else "executed to planned 1.0")


def test_a_mask_that_is_off_by_one_is_caught():
    (finding,) = [finding for finding in audit(gpt2(OffByOne), ids(2, 16)) if finding.check == FUTURE]
    assert finding.holds is False
    assert finding.detail.startswith("the output at token 0 depends on token 1: gradient")


@pytest.mark.filterwarnings("ignore:meta_router='paper'")
def test_the_metarouter_of_the_paper_is_caught():
    assert {FUTURE, ROWS} <= failing(calibrated("v2", meta_router="paper"), ids(4, 64))


def test_an_rbf_operator_without_mask_is_caught():
    model = calibrated("v1_three_operator")
    for mixer in model.modules():
        if isinstance(mixer, RBFMixer):
            mixer.causal = False
    assert {FUTURE, CACHE} <= failing(model, ids(4, 64))
    assert ROWS not in failing(model, ids(4, 64))


class OfTheWholeText(ThresholdRouter):
    """Chooses by the median entropy of the row, which has no gradient and knows the future."""

    def choose(self, score_BT, context):
        return (score_BT > score_BT.median(1, keepdim=True).values).long()


def test_a_choice_that_knows_the_future_is_caught_though_it_has_no_gradient():
    model = calibrated()
    for layer in model.modules():
        if isinstance(layer, RoutedMixer) and layer.router is not None:
            layer.router.__class__ = OfTheWholeText
    findings = {finding.check: finding for finding in audit(model, ids(4, 64))}
    assert findings[FUTURE].holds is False
    assert "other tokens from" in findings[FUTURE].detail


def rows_mixed(model):
    """A layer adds to every row what the first row has."""
    model.model.layers[0].register_forward_hook(lambda _, args, out: (out[0] + 0.1 * out[0][:1], out[1]))


def forgetful(model):
    """Attention forgets what came before."""
    for mixer in model.modules():
        if isinstance(mixer, AttentionMixer):
            mixer.register_forward_pre_hook(lambda _, args: args[2].state.clear() if args[2].state else None)


def blind_to_padding(model):
    """The body is never told of padding."""
    model.model.register_forward_pre_hook(
        lambda body, args, kwargs: (args, kwargs | {"attention_mask": None}), with_kwargs=True
    )


def generous(model):
    """The model plans a twentieth more than it executes."""
    plan = type(model).flops

    class Generous(ChiarForCausalLM):
        def flops(self, *args):
            flops = plan(self, *args)
            return flops + type(flops)(head=0.05 * flops.total)

    model.__class__ = Generous


def off_in_dense(model):
    """Attention of all tokens at once, as dense dispatch asks for, is not that of chosen ones."""
    for mixer in model.modules():
        if isinstance(mixer, AttentionMixer):
            mixer.register_forward_hook(lambda _, args, out: out if args[1] is not None else 1.01 * out)


def one_sided(model):
    for router in model.modules():
        if isinstance(router, ThresholdRouter):
            router.set_thresholds(0.0, 0.01)


@pytest.mark.parametrize(
    ("sabotage", "caught"),
    [
        (rows_mixed, {ROWS, PADDING}),  # padded rows stand beside each other
        (forgetful, {CACHE}),
        (blind_to_padding, {PADDING}),
        (generous, {FLOPS}),
        (off_in_dense, {DISPATCH}),
        (one_sided, {THRESHOLDS, STARVING}),
    ],
)
def test_what_is_broken_is_named(sabotage, caught):
    model = calibrated()
    assert failing(model, ids(8, 64)) == set()
    sabotage(model)
    assert failing(model, ids(8, 64)) == caught


def test_a_model_that_computes_nan_is_not_passed():
    model = gpt2()
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] = torch.nan
    assert {FUTURE, ROWS, CACHE, PADDING} <= failing(model, ids(2, 16))


def test_the_model_itself_is_left_as_it_was():
    model = gpt2().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    audit(model, ids(2, 16))
    assert model.training
    assert model.dtype == torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_too_little_text_is_refused():
    with pytest.raises(ValueError, match=r"at least two rows of eight tokens, got \(1, 64\)"):
        audit(gpt2(), ids(1, 64))


def test_a_folder_goes_before_the_recipe_that_it_is_named_after(tmp_path, monkeypatch):
    tiny_model("full_attention").save_pretrained(tmp_path / "chiar")
    monkeypatch.chdir(tmp_path)
    assert subject("chiar")[0].config.recipe == "full_attention"
    assert subject("v2")[0].config.recipe == "v2"


def test_a_retrofitted_folder_is_audited_as_it_routes(tmp_path):
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    )
    set_share(retrofit(model, layers=[1]), 0.5, ids(8, 64))
    model.save_pretrained(tmp_path)
    found, input_ids, _ = subject(str(tmp_path))
    assert failing(found, input_ids) == set()
    (router,) = (module for module in found.modules() if isinstance(module, ThresholdRouter))
    assert router.share == 0.5


def test_of_a_folder_without_its_text_no_share_is_judged(tmp_path):
    model = tiny_model("chiar", **EXPLORING)
    calibrate(model, torch.full((8, 64), 3))  # of random tokens quite another part lies above these thresholds
    model.save_pretrained(tmp_path)
    model, input_ids, calibrated = subject(str(tmp_path))
    assert failing(model, input_ids) & {THRESHOLDS, STARVING}
    found = {finding.check: finding for finding in audit(model, input_ids, calibrated)}
    assert {check for check, finding in found.items() if finding.holds is None} == {THRESHOLDS, STARVING}
    assert "not of the text that routers were calibrated on: layer" in found[THRESHOLDS].detail
    assert {finding.holds for check, finding in found.items() if check not in (THRESHOLDS, STARVING)} == {True}


def test_of_a_classifier_the_body_is_audited(tmp_path):
    ChiarForSequenceClassification(tiny_config("chiar", num_labels=3)).save_pretrained(tmp_path)
    found = subject(str(tmp_path))
    assert isinstance(found.model, ChiarModel)
    assert False not in [finding.holds for finding in audit(*found)]


def test_what_is_neither_a_folder_nor_a_recipe_is_answered_with_the_recipes(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is neither a folder .* recipes: chiar, full_attention"):
        subject("nowhere")
    gpt2().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="--data is encoded with the tokenizer of a run"):
        subject(str(tmp_path), data="text.txt")


def test_a_folder_of_transformers_is_read_with_its_weights_or_without(tmp_path):
    original = gpt2()
    original.save_pretrained(tmp_path)
    model, input_ids, _ = subject(str(tmp_path))
    assert torch.equal(model.transformer.wte.weight, original.transformer.wte.weight)
    assert input_ids.shape == (8, 128)
    (tmp_path / "model.safetensors").unlink()
    model, *_ = subject(str(tmp_path))
    assert isinstance(model, GPT2LMHeadModel)


def test_sizes_are_those_of_text_where_a_model_sees_too_and_no_length_is_any_length(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": VOCAB, "num_key_value_heads": 1, "head_dim": 8}
    vision = {"image_size": 28, "patch_size": 14}
    Gemma3Config(text_config=sizes | text, vision_config=sizes | vision).save_pretrained(tmp_path / "sees")
    found = {each.check: each.holds for each in audit(*subject(str(tmp_path / "sees")))}
    assert found[FUTURE] is True
    assert False not in found.values()
    XLNetConfig(vocab_size=VOCAB, d_model=16, n_layer=1, n_head=2, d_inner=16).save_pretrained(tmp_path / "any length")
    found = {each.check: each.holds for each in audit(*subject(str(tmp_path / "any length")))}
    assert found[FUTURE] is False  # nor is it causal
