"""What cannot be retrofitted, and what a retrofitted model cannot be asked for.

Shapes: B batch, T tokens.
"""

import warnings

import accelerate
import pytest
import torch
from tests.helpers import VOCAB, ids
from tests.modeling.retrofitted import SIZES, build, every_model, half
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
)

from chiaroscuro import load_retrofitted, retrofit, set_share


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


def test_a_body_without_its_head_is_refused():
    with pytest.raises(ValueError, match="LlamaModel gives no logits"):
        retrofit(build("llama").model)


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


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_weights_of_attention_are_refused(name):
    model = half(name, attn_implementation="eager")
    for asked in (model, model.base_model):
        with pytest.raises(ValueError, match="a retrofitted layer has no weights"):
            asked(ids(1, 9), output_attentions=True)
    set_share(model, 1.0, ids(4, 96))
    assert len(model(ids(1, 9), output_attentions=True).attentions) == 4
