"""Models with a short convolution before the operators of each layer.

Shapes: B batch, T tokens, D model channels.
"""

import pytest
import torch
from tests.helpers import D, assert_causal_and_apart, ids, tiny_config, tiny_model
from transformers import DynamicCache

from chiaroscuro import ChiarConfig, ChiarForCausalLM
from chiaroscuro.flops import executed_forward_flops

both_norms = pytest.mark.parametrize("recipe", ["chiar", "spectral", "v2"])
WIDTH = {"short_convolution": 4}


def test_it_starts_as_nothing_and_learns_all_the_same():
    torch.manual_seed(0)
    model, input_ids = ChiarForCausalLM(tiny_config(**WIDTH)), ids(2, 9)
    plain = ChiarForCausalLM(tiny_config(short_convolution=0))
    plain.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(model(input_ids).logits, plain(input_ids).logits)
    model(input_ids, labels=input_ids).loss.backward()
    assert all(layer.short_convolution.weight_WD.grad.abs().sum() > 0 for layer in model.model.layers)


@both_norms
@pytest.mark.parametrize("T", [1, 3, 9])
def test_no_logit_depends_on_later_tokens_or_other_rows(recipe, T):
    model = tiny_model(recipe, **WIDTH)
    assert_causal_and_apart(lambda x: model(inputs_embeds=x).logits, torch.randn(2, T, D, dtype=torch.float64))


@both_norms
@pytest.mark.parametrize("cuts", [(5, 1, 1, 3), (1, 1, 1, 1, 6), (2, 8)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_text_in_pieces_gives_the_logits_of_the_whole_without_padding(recipe, cuts, side):
    model, T, padding = tiny_model(recipe, **WIDTH), sum(cuts), 2
    input_ids, mask = ids(2, T), torch.ones(2, T, dtype=torch.long)
    text = slice(padding, T) if side == "left" else slice(0, T - padding)
    mask[1] = 0
    mask[1, text] = 1
    cache, pieces, start = DynamicCache(config=model.config), [], 0
    for size in cuts:
        now = slice(start, start + size)
        pieces.append(model(input_ids[:, now], attention_mask=mask[:, : start + size], past_key_values=cache).logits)
        start += size
    logits = torch.cat(pieces, 1)
    torch.testing.assert_close(logits[0], model(input_ids[:1]).logits[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(logits[1, text], model(input_ids[1:, text]).logits[0], atol=1e-10, rtol=0)


@both_norms
@pytest.mark.parametrize("cuts", [(9,), (5, 4), (1,) * 9, (3, 1, 5)])
def test_padding_between_tokens_is_not_there(recipe, cuts):
    model, input_ids = tiny_model(recipe, **WIDTH), ids(2, 9)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 1, 1, 1], [0, 1, 0, 1, 1, 1, 0, 1, 0]])
    cache, pieces, start = DynamicCache(config=model.config), [], 0
    for size in cuts:
        now = slice(start, start + size)
        pieces.append(model(input_ids[:, now], attention_mask=mask[:, : start + size], past_key_values=cache).logits)
        start += size
    for row, valid, logits in zip(input_ids, mask.bool(), torch.cat(pieces, 1), strict=True):
        torch.testing.assert_close(logits[valid], model(row[valid][None]).logits[0], atol=1e-10, rtol=0)


@both_norms
def test_beams_take_what_it_remembers_along(recipe):
    model, input_ids = tiny_model(recipe, **WIDTH), ids(2, 5)
    arguments = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(input_ids, **arguments)
    assert torch.equal(cached, model.generate(input_ids, use_cache=False, **arguments))


def test_it_survives_saving_belongs_to_the_twin_and_is_counted(tmp_path):
    fields = {"vocab_size": 61, "hidden_size": 8, "num_attention_heads": 2, "short_convolution": 9}
    model = ChiarForCausalLM(ChiarConfig(**fields)).eval()
    model.save_pretrained(tmp_path)
    loaded = ChiarForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids(1, 9)).logits, model(ids(1, 9)).logits)
    assert loaded.config.twin().short_convolution == 9
    # At this width it is a fiftieth of all there is, so that a count without it would be seen.
    with torch.no_grad():
        routing = model(ids(2, 64), output_routing=True).routing
    planned = model.flops(2, 64, routing=routing).total
    assert executed_forward_flops(model, ids(2, 64)) == pytest.approx(planned, rel=0.02)
    without = ChiarForCausalLM(ChiarConfig(**fields | {"short_convolution": 0}))
    assert model.flops(2, 64).mixing - without.flops(2, 64).mixing == 5 * 2 * (2 * 64) * 8 * 9
