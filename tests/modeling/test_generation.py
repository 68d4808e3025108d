"""Generation: what is remembered between calls gives what the whole would.

Shapes: B batch, T tokens.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import (
    every_keys,
    every_recipe_router_and_keys,
    every_router_and_keys,
    ids,
    tiny_model,
)
from transformers import DynamicCache

routed_recipes = pytest.mark.parametrize("recipe", ["chiar", "spectral", "v1_three_operator", "v1_dct_attention", "v2"])


def left_padded(B, T):
    """Prompts of different lengths, the first full, and their mask. Token 0, which pads, is in no prompt."""
    input_ids = ids(B, T).clamp_min(1)
    mask = (torch.arange(T) >= torch.arange(0, 2 * B, 2)[:, None]).long()
    return input_ids * mask, mask


@every_recipe_router_and_keys
def test_greedy_generation_through_the_cache_is_that_of_the_full_pass(recipe, router, keys):
    model = tiny_model(recipe, router=router, attention_keys=keys)
    input_ids, mask = left_padded(3, 7)
    arguments = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(input_ids=input_ids, **arguments)
    assert torch.equal(cached, model.generate(input_ids=input_ids, use_cache=False, **arguments))
    for row, kept in enumerate(mask.sum(1).tolist()):
        alone = model.generate(
            input_ids=input_ids[row : row + 1, -kept:], max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        assert torch.equal(alone[0], cached[row, 7 - kept :])
        # By hand, without generate: each token is the likeliest one in a full pass over those before it.
        assert torch.equal(model(alone).logits[:, kept - 1 : -1].argmax(-1), alone[:, kept:])


@routed_recipes
@every_keys
@given(cuts=st.lists(st.integers(1, 5), min_size=1, max_size=4), padded=st.booleans())
def test_a_prompt_in_pieces_gives_the_logits_of_the_whole(recipe, keys, cuts, padded):
    model, T = tiny_model(recipe, attention_keys=keys), sum(cuts)
    input_ids, mask = ids(2, T), torch.ones(2, T, dtype=torch.long)
    if padded:
        mask[1, : min(2, T - 1)] = 0
    whole = model(input_ids, attention_mask=mask).logits
    cache, pieces, start = DynamicCache(config=model.config), [], 0
    for size in cuts:
        now = slice(start, start + size)
        pieces.append(model(input_ids[:, now], attention_mask=mask[:, : start + size], past_key_values=cache).logits)
        start += size
    assert cache.get_seq_length() == T
    valid = mask.bool()
    torch.testing.assert_close(torch.cat(pieces, 1)[valid], whole[valid], atol=1e-10, rtol=0)


@pytest.mark.parametrize("recipe", ["chiar", "v1_three_operator", "v2"])
@every_router_and_keys
def test_a_text_of_several_chunks_in_pieces_gives_the_logits_of_the_whole(recipe, router, keys):
    """Longer than a chunk of the RBF's running sum and than a block of chosen queries; the second row padded."""
    model, input_ids = tiny_model(recipe, router=router, attention_keys=keys), ids(2, 150)
    mask = (torch.arange(150) >= torch.tensor([[0], [70]])).long()
    whole = model(input_ids, attention_mask=mask).logits
    cache, pieces, start = DynamicCache(config=model.config), [], 0
    for size in (1, 64, 1, 1, 30, 53):
        end = start + size
        piece = model(input_ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache)
        pieces.append(piece.logits)
        start = end
    torch.testing.assert_close(torch.cat(pieces, 1)[mask.bool()], whole[mask.bool()], atol=1e-10, rtol=0)
    torch.testing.assert_close(model(input_ids[1:, 70:]).logits[0], whole[1, 70:], atol=1e-10, rtol=0)


@routed_recipes
@pytest.mark.parametrize("way", [{"prefill_chunk_size": 3}, {"cache_implementation": "offloaded"}])
def test_other_ways_to_fill_the_cache_generate_the_same(recipe, way):
    model, (input_ids, mask) = tiny_model(recipe), left_padded(2, 8)
    arguments = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(input_ids=input_ids, use_cache=False, **arguments)
    assert torch.equal(model.generate(input_ids=input_ids, **arguments, **way), expected)


@routed_recipes
def test_a_cache_can_be_emptied_and_its_rows_repeated_and_picked(recipe):
    model, input_ids = tiny_model(recipe), ids(2, 6)
    next_ids = ids(2, 7)[:, -1:]
    whole = model(torch.cat((input_ids, next_ids), 1)).logits[:, -1:]
    cache = model(ids(2, 9, seed=3), use_cache=True).past_key_values
    cache.reset()
    model(input_ids, past_key_values=cache)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    swapped = model(next_ids[[1, 0]], past_key_values=cache).logits
    torch.testing.assert_close(swapped, whole[[1, 0]], atol=1e-10, rtol=0)


@routed_recipes
def test_beam_search_moves_every_state_with_its_beam(recipe):
    model, (input_ids, mask) = tiny_model(recipe, attention_keys="routed"), left_padded(2, 5)
    arguments = {"attention_mask": mask, "max_new_tokens": 8, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(input_ids=input_ids, **arguments)
    assert torch.equal(cached, model.generate(input_ids=input_ids, use_cache=False, **arguments))


def test_routed_keys_make_the_cache_shrink():
    held = {}
    for keys in ("all", "routed"):
        model = tiny_model(attention_keys=keys)
        cache = model(ids(1, 40), use_cache=True).past_key_values
        held[keys] = cache.layers[1].states["attention"]["used_B"].item()
        assert cache.get_seq_length() == 40
    assert held["all"] == 40
    assert held["routed"] < 35


def test_assisted_decoding_is_refused_and_not_wrong():
    model = tiny_model("v1_three_operator")
    with pytest.raises(ValueError, match=r"(?i)stateful"):
        model.generate(input_ids=ids(1, 4), assistant_model=tiny_model(), max_new_tokens=4, pad_token_id=0)


@every_keys
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_implementation_of_attention_generates_through_the_cache(keys, implementation):
    model = tiny_model(router="random", attention_keys=keys).float()
    arguments = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids(1, 12), **arguments)
    model.set_attn_implementation(implementation)
    assert torch.equal(model.generate(ids(1, 12), **arguments), expected)


def test_a_cache_that_inference_mode_filled_can_be_gone_on_with():
    model = tiny_model()
    whole = model(ids(1, 12)).logits
    with torch.inference_mode():
        cache = model(ids(1, 12)[:, :8], use_cache=True).past_key_values
    with torch.no_grad():
        for t in range(8, 12):
            logits = model(ids(1, 12)[:, t : t + 1], past_key_values=cache).logits
            torch.testing.assert_close(logits[:, 0], whole[:, t])
