"""Recency: by its definition, in pieces and in a model; and the router that goes by it."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import default_dtype, ids, tiny_model

from chiaroscuro.mixers import Context
from chiaroscuro.routing import calibrate, recency, router_class


def by_definition(ids_BT, known_BT):
    found = torch.ones(ids_BT.shape)
    for row, known, out in zip(ids_BT.tolist(), known_BT.tolist(), found, strict=True):
        for t in (t for t in range(len(row)) if known[t]):
            before = [s for s in range(t) if row[s] == row[t] and known[s]]
            out[t] = 1 / sum(known[before[-1] : t]) if before else -1 / (1 + sum(known[:t]))
    return found


@st.composite
def rows(draw):
    """Ids and which are known, with few ids, so that they recur."""
    B, T = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    drawn = [draw(st.lists(st.integers(0, most), min_size=B * T, max_size=B * T)) for most in (3, 2)]
    tokens, known = torch.tensor(drawn).view(2, B, T)
    return tokens, known > 0


@settings(deadline=None)
@given(rows(), st.data())
def test_recency_is_one_by_the_tokens_since_the_last_of_the_same_id_whole_or_in_pieces(drawn, data):
    tokens, known = drawn
    expected = by_definition(tokens, known)
    assert torch.equal(recency(tokens, known), expected)
    assert torch.equal(recency(tokens.int()), by_definition(tokens, torch.ones_like(known)))
    T, state = tokens.shape[1], {}
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, T)))), T]
    pieces = [slice(*ends) for ends in itertools.pairwise(cuts) if ends[0] < ends[1]]
    assert torch.equal(torch.cat([recency(tokens[:, each], known[:, each], state) for each in pieces], 1), expected)


def test_every_token_that_recurs_attends_and_with_a_share_those_that_occurred_last():
    few, most, every = (router_class("recurrence")(8, 2, share=share) for share in (0.25, 0.9, None))
    tokens = ids(16, 200)
    context = Context(recency_BT=recency(tokens))
    recur = (context.recency_BT > 0).float()
    assert torch.equal(every(torch.zeros(16, 200, 8), None, context)[..., 1], recur)
    for router in (few, most):
        assert torch.equal(router(torch.zeros(16, 200, 8), None, context)[..., 1], recur)  # not calibrated
        low, _ = router.part(context.recency_BT.flatten())
        chosen = router(torch.zeros(16, 200, 8), None, context)[..., 1]
        assert float(chosen.mean()) == pytest.approx(router.share, abs=0.01)
        assert float(context.recency_BT[chosen > 0].min()) > low > float(context.recency_BT[chosen == 0].max())
    with pytest.raises(ValueError, match="goes by when tokens last occurred"):
        every(torch.zeros(16, 200, 8), None, Context())


def test_a_model_knows_when_tokens_last_occurred_past_padding_and_cache_and_without_ids():
    model = tiny_model("chiar", router="recurrence")
    tokens, mask = ids(2, 30), torch.ones(2, 30, dtype=torch.bool)
    mask[1, :7] = False
    calibrate(model, tokens)
    expected = by_definition(tokens, mask)

    def attending(given):
        thresholds = [float(layer.mixer.router.thresholds.mean()) for layer in model.model.layers if layer.mixer.router]
        return [(given > threshold).long() for threshold in thresholds]

    def chosen(**given):
        return [trace.choice for trace in model(**given, output_routing=True).routing]

    for found, wanted in zip(chosen(input_ids=tokens, attention_mask=mask), attending(expected), strict=True):
        assert torch.equal(found[mask], wanted[mask])
        assert 0 < int(wanted[mask].sum()) < int(mask.sum())
    cache = model(tokens[:, :20], attention_mask=mask[:, :20], use_cache=True).past_key_values
    cache.reorder_cache(torch.tensor([1, 0]))
    later = chosen(input_ids=tokens[[1, 0], 20:], attention_mask=mask[[1, 0]], past_key_values=cache)
    for found, wanted in zip(later, attending(expected), strict=True):
        assert torch.equal(found, wanted[[1, 0], 20:])
    embeds = model.get_input_embeddings()(tokens)
    assert all(choice.all() for choice in chosen(inputs_embeds=embeds))


@pytest.mark.parametrize("share", [None, 0.3, 0.9])
@pytest.mark.parametrize("before", [0, 7])  # of the tokens of the text, which padding between them parts
def test_padding_changes_nothing_whatever_the_share(share, before):
    model, text = tiny_model("chiar", routed_share=share), ids(1, 12) % 7
    calibrate(model, ids(8, 40) % 7)
    padded = torch.cat((text[:, :before], torch.full((1, 30), 3), text[:, before:]), 1)
    mask = torch.ones(1, 42, dtype=torch.bool)
    mask[:, before : before + 30] = False
    alone = model(text, output_routing=True)
    beside = model(padded, attention_mask=mask, output_routing=True)
    assert torch.equal(alone.routing[0].choice, beside.routing[0].choice[mask][None])
    assert 0 < int(alone.routing[0].choice.sum()) < 12
    torch.testing.assert_close(beside.logits[mask][None], alone.logits, atol=1e-10, rtol=0)


def test_recency_is_the_same_under_another_default_precision():
    tokens, wanted = ids(2, 400), recency(ids(2, 400))
    with default_dtype(torch.bfloat16):
        assert torch.equal(recency(tokens), wanted)


def test_without_a_share_who_recurs_attends_whatever_thresholds_were_saved(tmp_path):
    model, text = tiny_model("chiar", routed_share=0.5), ids(2, 40)
    calibrate(model, ids(8, 40))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, routed_share=None)
    assert torch.equal(loaded(text, output_routing=True).routing[0].choice, (recency(text) > 0).long())
    assert calibrate(loaded, text) == []
