"""Routed attention in models of transformers: the same at a share of one, sound at any other, saved and loaded.

Shapes: B batch, T tokens.
"""

import copy
import io
import warnings

import accelerate
import pytest
import torch
from tests.helpers import VOCAB, ids
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from chiaroscuro import load_retrofitted, retrofit, set_share
from chiaroscuro.analysis import audit
from chiaroscuro.flops import executed_forward_flops
from chiaroscuro.routing import ThresholdRouter, follow, threshold_routers
from chiaroscuro.training import ThresholdRefresh

SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "bos_token_id": 0}
SIZES |= {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 256, "eos_token_id": None}
SIZES |= {"pad_token_id": 0}
SCALED = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}
SCALED |= {"llama_4_scaling_beta": 0.1}
BUILT = {
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config,
        {"n_positions": 256, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    ),
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
    "cohere": (CohereForCausalLM, CohereConfig, {}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 8, "sliding_window": 16}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 16}),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config, {}),
    "olmo": (OlmoForCausalLM, OlmoConfig, {"clip_qkv": 8.0}),
    "ministral3": (Ministral3ForCausalLM, Ministral3Config, {"rope_parameters": SCALED}),
    "crossing": (GPT2LMHeadModel, GPT2Config, {"add_cross_attention": True}),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, {}),
}
every_model = pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "qwen3"])


def build(name, **fields):
    """Weights far enough from their start that attention matters."""
    cls, config, own = BUILT[name]
    torch.manual_seed(0)
    model = cls(config(**(SIZES | own | fields))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def half(name="llama", light="dct", **fields):
    """Half of the tokens of two layers go to attention, the others through a spectral filter that does something."""
    model = retrofit(build(name, **fields), light=light)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("filter"):
                parameter.normal_()
    set_share(model, 0.5, ids(4, 96))
    return model


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


def test_layers_are_chosen_by_index():
    model = retrofit(build("llama"), layers=[3, 0, 3])
    assert [router.layer for router in model.modules() if isinstance(router, ThresholdRouter)] == [0, 3]
    assert model.config.chiaroscuro == {"layers": [0, 3], "light": "none", "share": 1.0}


@pytest.mark.parametrize(
    ("name", "arguments", "complaint"),
    [
        ("llama", {"layers": [1, 4]}, r"layers must be some of \[0, 1, 2, 3\], got \[1, 4\]"),
        ("llama", {"layers": []}, "layers must be some of"),
        ("llama", {"light": "rbf"}, "unknown light operator 'rbf'; known: none, dct"),
        ("cohere", {}, "computes its attention in another way"),
        ("olmo2", {}, "computes its attention in another way"),
        ("gemma2", {}, "layer 1 caps the scores of its attention"),
        ("mistral", {}, "attends within a window of 16 tokens"),
        ("olmo", {}, "layer 1 clips queries, keys and values"),
        ("ministral3", {}, "layer 1 scales queries by their positions"),
        ("crossing", {}, "layer 1 attends to another model's states"),
        ("gpt_neox", {}, "has no attention built as Llama's or GPT-2's"),
    ],
)
def test_what_cannot_be_retrofitted_is_refused_and_left_as_it_was(name, arguments, complaint):
    model = build(name)
    before, names = model(ids(2, 24)).logits, set(model.state_dict())
    with pytest.raises(ValueError, match=complaint):
        retrofit(model, **arguments)
    assert set(model.state_dict()) == names
    assert not hasattr(model.config, "chiaroscuro")
    assert torch.equal(model(ids(2, 24)).logits, before)


def test_quantized_weights_are_refused():
    model = build("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wants this done by another library
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    with pytest.raises(ValueError, match="layer 1 has weights that are quantized"):
        retrofit(model)


def test_masks_of_other_kinds_of_attention_are_refused():
    model = half("llama")
    with pytest.raises(ValueError, match="takes masks for eager or sdpa attention, got shape"):
        model.model.layers[1].self_attn(torch.randn(1, 4, 32), attention_mask=torch.ones(1, 4))
    with pytest.raises(ValueError, match="takes masks for eager or sdpa attention, got BlockMask"):
        model.model.layers[1].self_attn(torch.randn(1, 4, 32), attention_mask=create_block_mask(causal, 1, 1, 4, 4))


def causal(batch, head, query, key):
    return query >= key


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


def test_a_share_that_cannot_be_set_leaves_the_model_as_it_was():
    model = half("llama")
    before = model(ids(2, 24)).logits
    with pytest.raises(IndexError):
        set_share(model, 0.3, torch.full((1, 10), VOCAB))
    assert model.config.chiaroscuro["share"] == 0.5
    assert torch.equal(model(ids(2, 24)).logits, before)


def test_misuse_is_answered(tmp_path):
    model = build("llama")
    with pytest.raises(ValueError, match="was not retrofitted"):
        set_share(model, 0.5, ids(2, 24))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="was not retrofitted"):
        load_retrofitted(tmp_path)
    retrofit(model)
    with pytest.raises(ValueError, match="was retrofitted before"):
        retrofit(model)
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\], got 1.5"):
        set_share(model, 1.5, ids(2, 24))
    with pytest.raises(ValueError, match=r"no layer between the first and the last of \[0, 1\]: give layers"):
        retrofit(build("llama", num_hidden_layers=2))


def test_a_window_of_no_tokens_is_none():
    model = build("llama")
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 0  # as Qwen2-MoE says that there is none
    before = model(ids(2, 24)).logits
    assert torch.equal(retrofit(model)(ids(2, 24)).logits, before)


def test_texts_packed_into_one_row_are_refused():
    model = half("llama")
    mask = torch.ones(24, 24, dtype=torch.bool).tril()
    mask[12:, :12] = False
    with pytest.raises(ValueError, match="no windows and no packed texts"):
        model(ids(1, 24), attention_mask=mask[None, None])


@every_model
def test_texts_that_are_told_apart_by_their_positions_are_refused(name):
    model, packed = half(name), torch.cat((torch.arange(12), torch.arange(12)))[None]
    with pytest.raises(ValueError, match="position_ids start again within a row"):
        model(ids(1, 24), position_ids=packed)
    with pytest.raises(ValueError, match="cu_seq_lens_q: several texts packed into one"):
        model(ids(1, 24), cu_seq_lens_q=torch.tensor([0, 12, 24]))
    padded = torch.tensor([[0] * 4 + [1] * 20])
    model(ids(1, 24), attention_mask=padded, position_ids=(padded.cumsum(1) - 1).masked_fill(padded == 0, 1))
    set_share(model, 1.0, ids(4, 96))
    model(ids(1, 24), position_ids=packed)


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
def test_a_model_that_was_spread_over_devices_is_refused(name):
    model = build(name)
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    with pytest.raises(ValueError, match=r"layer 1 has a forward method of its own.*retrofit it before"):
        retrofit(model)


def test_weights_that_are_not_here_are_refused():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    with pytest.raises(ValueError, match="weights that are kept elsewhere cannot be checked"):
        retrofit(model)
    assert not hasattr(model.config, "chiaroscuro")


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


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_weights_of_attention_are_refused(name):
    model = half(name, attn_implementation="eager")
    for asked in (model, model.base_model):
        with pytest.raises(ValueError, match="a retrofitted layer has no weights"):
            asked(ids(1, 9), output_attentions=True)
    set_share(model, 1.0, ids(4, 96))
    assert len(model(ids(1, 9), output_attentions=True).attentions) == 4
