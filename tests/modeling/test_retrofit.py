"""Routed attention in models of transformers: the same at a share of one, sound at any other, saved and loaded.

Shapes: B batch, T tokens.
"""

import copy
import io

import accelerate
import pytest
import torch
from tests.helpers import ids
from tests.modeling.retrofitted import build, every_model, half
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from chiaroscuro import load_retrofitted, retrofit, set_share
from chiaroscuro.analysis import audit
from chiaroscuro.flops import executed_forward_flops
from chiaroscuro.routing import ThresholdRouter, follow, threshold_routers
from chiaroscuro.training import ThresholdRefresh


@every_model
@pytest.mark.parametrize("light", ["none", "dct"])
def test_nothing_changes_until_the_share_is_lowered(name, light):
    model = build(name)
    before = model(ids(2, 40)).logits
    names = set(model.state_dict())
    assert retrofit(model, light=light) is model
    assert torch.equal(model(ids(2, 40)).logits, before)
    assert names <= set(model.state_dict())
    set_share(model, 0.5, ids(4, 96))
    assert not torch.allclose(model(ids(2, 40)).logits, before, atol=1e-2)
    set_share(model, 1.0, ids(4, 96))
    assert torch.equal(model(ids(2, 40)).logits, before)


@every_model
def test_a_retrofitted_model_passes_the_audit(name):
    found = {finding.check: finding for finding in audit(half(name), ids(6, 96))}
    assert {check for check, finding in found.items() if not finding.holds} == {"planned FLOPs are executed"}
    assert found["planned FLOPs are executed"].holds is None


@every_model
def test_the_share_is_that_of_the_tokens_and_of_the_flops(name):
    model, text = retrofit(build(name)), ids(8, 128)
    whole = executed_forward_flops(model, text)
    shares, spent = [], {}
    for layer in model.modules():
        if isinstance(layer, ThresholdRouter):
            layer.register_forward_hook(lambda _, args, gates: shares.append(float(gates[..., 1].mean())))
    for share in (0.75, 0.25, 0.0):
        set_share(model, share, text)
        shares.clear()
        spent[share] = executed_forward_flops(model, text) / whole
        assert shares == pytest.approx([share, share], abs=0.01)
    assert 1.0 > spent[0.75] > spent[0.25] > spent[0.0]


@every_model
def test_padding_is_no_token_when_thresholds_follow(name):
    model, text = half(name, light="none").train(), ids(8, 64)
    mask = torch.ones_like(text)
    mask[::2, :40], mask[1::2, 20:] = 0, 0  # on either side
    model(text.masked_fill(mask == 0, 1), attention_mask=mask)
    follow(model)
    shares = []
    for router in threshold_routers(model.eval()):
        router.register_forward_hook(lambda _, args, gates: shares.append(float(gates[..., 1][mask.bool()].mean())))
    model(text, attention_mask=mask)
    assert shares == pytest.approx([0.5, 0.5], abs=0.01)


@every_model
@pytest.mark.parametrize("way", [{}, {"cache_implementation": "static"}, {"num_beams": 3}])
def test_generation_through_a_cache_is_that_without(name, way):
    model = half(name).double()
    prompt = ids(2, 12).clamp_min(1)
    expected = model.generate(
        prompt, max_new_tokens=10, do_sample=False, use_cache=False, num_beams=way.get("num_beams", 1)
    )
    assert torch.equal(model.generate(prompt, max_new_tokens=10, do_sample=False, **way), expected)


@every_model
def test_padded_prompts_generate_what_they_do_alone(name):
    model = half(name).double()
    prompts = ids(2, 12).clamp_min(1)
    prompts[1, :5] = 0
    found = model.generate(prompts, attention_mask=(prompts > 0).long(), max_new_tokens=8, do_sample=False)
    assert torch.equal(found[1:, 5:], model.generate(prompts[1:, 5:], max_new_tokens=8, do_sample=False))


@every_model
def test_saved_and_loaded(name, tmp_path):
    model = half(name)
    model.save_pretrained(tmp_path)
    loaded = load_retrofitted(tmp_path)
    assert type(loaded).__name__ == type(model).__name__
    assert torch.equal(loaded(ids(2, 40)).logits, model(ids(2, 40)).logits)
    # Without this library it is the model it was, weights and all.
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    set_share(model, 1.0, ids(4, 96))
    assert torch.equal(plain(ids(2, 40)).logits, model(ids(2, 40)).logits)
    copied = copy.deepcopy(loaded)
    assert torch.equal(copied(ids(2, 40)).logits, loaded(ids(2, 40)).logits)


@every_model
def test_every_weight_learns_with_and_without_checkpointing(name):
    gradients = []
    for checkpointing in (False, True):
        model = half(name).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids(2, 40), labels=ids(2, 40), use_cache=False).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients[-1].values())
    for parameter_name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter_name], gradient, msg=parameter_name)


def test_dropout_behind_the_last_projection_stays():
    """Which Seed-OSS has and Llama does not."""
    model = retrofit(build("seed_oss"))
    set_share(model, 0.5, ids(2, 64))
    out = []
    model.model.layers[1].self_attn.routed.mixers["attention"].register_forward_hook(lambda *args: out.append(args[-1]))
    model.train()(ids(2, 24))
    assert 0.2 < float((out[0] == 0).float().mean()) < 0.4
    model.eval()(ids(2, 24))
    assert not (out[1] == 0).any()


def test_layers_are_chosen_by_index():
    model = retrofit(build("llama"), layers=[3, 0, 3])
    assert [router.layer for router in model.modules() if isinstance(router, ThresholdRouter)] == [0, 3]
    assert model.config.chiaroscuro == {"layers": [0, 3], "light": "none", "share": 1.0}


def test_a_dense_start_goes_on_where_it_was_and_ends_with_the_share_that_was_set(tmp_path):
    held_out = ids(16, 48)

    def train(stop: int, resume: bool) -> list[float]:
        model = retrofit(build("llama"))
        set_share(model, 0.25, held_out)
        arguments = TrainingArguments(
            str(tmp_path), max_steps=9, save_steps=5, per_device_train_batch_size=1, report_to="none", use_cpu=True
        )
        shares = Shares(stop)
        schedule = ThresholdRefresh(held_out, dense_steps=8)
        texts = [{"input_ids": row, "labels": row} for row in ids(9, 16)]
        Trainer(model, arguments, train_dataset=texts, callbacks=[schedule, shares]).train(
            resume_from_checkpoint=resume
        )
        attended = executed_forward_flops(model, held_out)
        set_share(model, 0.25, held_out)
        assert attended == executed_forward_flops(model, held_out)
        return shares.seen

    falling = [1 - 0.75 * step / 8 for step in range(9)]
    assert train(stop=5, resume=False) == falling[:5]
    assert train(stop=9, resume=True) == falling[5:]


class Shares(TrainerCallback):
    """Notes the share to be attended for at every step, and stops after one of them."""

    def __init__(self, stop):
        self.stop, self.seen = stop, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.seen += {router.shares[-1] for router in threshold_routers(kwargs["model"])}

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.stop


def test_a_window_of_no_tokens_is_none():
    model = build("llama")
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 0  # as Qwen2-MoE says that there is none
    before = model(ids(2, 24)).logits
    assert torch.equal(retrofit(model)(ids(2, 24)).logits, before)


def test_a_model_in_bfloat16_keeps_its_thresholds_when_saved(tmp_path):
    model = half().to(torch.bfloat16)
    for share in (0.3, 0.2):
        set_share(model, share, ids(4, 96))
        model.save_pretrained(tmp_path)
        pairs = [
            [module.thresholds for module in each.modules() if isinstance(module, ThresholdRouter)]
            for each in (model, load_retrofitted(tmp_path))
        ]
        assert all(torch.equal(*pair) and pair[0].dtype == torch.float32 for pair in zip(*pairs, strict=True))


class Adapter(nn.Module):
    """A low-rank change put around a projection, as libraries of adapters do it."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.low = nn.Parameter(0.1 * torch.randn(base.weight.shape[0], 2))
        self.high = nn.Parameter(0.1 * torch.randn(2, base.weight.shape[1]))

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        return self.base(x) + x @ self.low @ self.high


def test_an_adapter_around_the_projections_of_gpt2_is_used_and_learns():
    model = half("gpt2")
    attention = model.transformer.h[1].attn
    before = model(ids(2, 24)).logits
    attention.c_attn = Adapter(attention.c_attn)
    out = model(ids(2, 24), labels=ids(2, 24))
    assert not torch.allclose(out.logits, before)
    out.loss.backward()
    assert float(attention.c_attn.low.grad.abs().sum()) > 0


@every_model
def test_weights_that_are_fetched_when_they_are_needed_give_the_same(name):
    model = half(name)
    expected = model(ids(2, 24)).logits
    accelerate.cpu_offload(model, execution_device="cpu")
    torch.testing.assert_close(model(ids(2, 24)).logits, expected, atol=1e-5, rtol=0)


@every_model
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_in_mixed_precision_is_close_to_that_in_single(name, checkpointing):
    model = half(name).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    text, found = ids(2, 24), {}
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = model(text, labels=text, use_cache=False).loss
        loss.backward()
        found[precision] = float(loss)
    assert found[torch.bfloat16] == pytest.approx(found[torch.float32], rel=0.05)


@every_model
def test_a_pickled_model_is_the_same(name):
    model, file = half(name), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(ids(2, 24)).logits, model(ids(2, 24)).logits)
    set_share(again, 1.0, ids(4, 96))
    assert not torch.equal(again(ids(2, 24)).logits, model(ids(2, 24)).logits)


def replica_of(module):
    """As nn.DataParallel makes one, with weights twice as large."""
    replica = module._replicate_for_data_parallel()
    replica._modules = {name: replica_of(child) for name, child in module._modules.items()}
    for name, parameter in module._parameters.items():
        setattr(replica, name, None if parameter is None else 2 * parameter.detach())
    return replica


@every_model
def test_a_replica_computes_with_its_own_weights(name):
    model, twice = half(name), half(name)
    with torch.no_grad():
        for parameter in twice.parameters():
            parameter.mul_(2)
    assert torch.equal(replica_of(model)(ids(2, 24)).logits, twice(ids(2, 24)).logits)
