"""What every operator promises, ours and one that a third party adds in its own file.

Shapes: B batch, T tokens, D model channels.
"""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import D, assert_causal_and_apart, every_keys, ids, reach, tiny_config, tiny_model

from chiaroscuro.mixers import (
    AttentionMixer,
    Context,
    DCTMixer,
    FeedForward,
    Mixer,
    RBFMixer,
    WindowMixer,
    Work,
    feed_forward,
    mixer_class,
    register_mixer,
)
from chiaroscuro.ops import Chosen, dct, packed_dct, rbf_features, rbf_kernel, rbf_mix, reference, rotary_tables

# The operator "shift" that the documents show how to add, as they print it.
PAGE = Path(__file__).parent.parent.parent / "docs" / "operators.md"
CODE = re.search(r"```python\n(.*?)\n\n\nconfig =", PAGE.read_text(), re.DOTALL)[1]
exec(CODE, {"__name__": "document"})

OPERATORS = ["dct", "rbf", "attention", "window", "none", "identity", "linear", "shift"]
every_operator = pytest.mark.parametrize("name", OPERATORS)


def build(name: str, **fields: object) -> Mixer:
    mixer = mixer_class(name).from_config(tiny_config(**fields)).double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def tokens(B: int, T: int) -> torch.Tensor:
    return torch.randn(B, T, D, dtype=torch.float64)


def rotary(T: int) -> tuple[torch.Tensor, torch.Tensor]:
    return rotary_tables(torch.arange(T)[None], D // 2)


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "none"])  # which reads nothing at all
@pytest.mark.parametrize("T", [1, 2, 7])
def test_no_operator_reads_the_future_or_another_row(name, T):
    mixer = build(name)
    found = reach(lambda x: mixer(x, None, Context(rotary=rotary(T))), tokens(2, T))
    assert not found[0, :, 1].any()
    assert not found[1, :, 0].any()
    assert not any(found[b, :, b].triu(1).any() for b in range(2))
    assert found.any() or (name == "shift" and T == 1)


@every_operator
@every_keys
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 12),
    share=st.sampled_from([0.0, 0.4, 1.0]),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_chosen_rows_are_the_rows_of_the_dense_output(name, keys, B, T, share, padded, seed):
    torch.manual_seed(seed)
    mixer, x, mask = build(name, attention_keys=keys), tokens(B, T), torch.rand(B, T) < share
    valid = torch.arange(T) >= torch.arange(B)[:, None] if padded else None
    if valid is not None:
        mask = mask & valid
    dense = mixer(x, None, Context(valid_BT=valid, rotary=rotary(T), routed_BT=mask))
    rows = mixer(x, Chosen(mask), Context(valid_BT=valid, rotary=rotary(T)))
    torch.testing.assert_close(rows, dense[mask], atol=1e-10, rtol=0)


@every_operator
@every_keys
@given(
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    share=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    padding=st.sampled_from(["none", "before", "anywhere"]),
    training=st.booleans(),
    noted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pieces_through_the_state_give_the_whole(name, keys, cuts, share, padding, training, noted, seed):
    torch.manual_seed(seed)
    T = sum(cuts)
    mixer, x, mask = build(name, attention_keys=keys), tokens(2, T), torch.rand(2, T) < share
    valid = torch.arange(T) >= torch.tensor([[0], [min(2, T - 1) if padding == "before" else 0]])
    if padding == "anywhere":
        valid = torch.rand(2, T) < 0.6
    mask = mask & valid
    cos, sin = rotary(T)
    whole = mixer(x, Chosen(mask), Context(valid_BT=valid, rotary=(cos, sin)))
    state: dict[str, torch.Tensor] = {}
    out, start = torch.zeros_like(x), 0
    for size in cuts:
        now = slice(start, start + size)
        valid_now = None if padding == "none" else valid[:, now]
        context = Context(valid_BT=valid_now, rotary=(cos[:, now], sin[:, now]), state=state)
        piece = mask[:, now]
        with torch.set_grad_enabled(training):
            if noted and not piece.any():
                mixer.remember(x[:, now], context)
            else:
                out[:, now][piece] = mixer(x[:, now], Chosen(piece), context)
        start += size
    torch.testing.assert_close(out[mask], whole, atol=1e-10, rtol=0)


@every_operator
def test_padding_reaches_no_other_token(name):
    mixer, x = build(name), tokens(2, 6)
    valid = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    other = torch.where(valid[..., None], x, 9.0)
    outs = [mixer(tokens_BTD, None, Context(valid_BT=valid, rotary=rotary(6))) for tokens_BTD in (x, other)]
    torch.testing.assert_close(outs[0][valid], outs[1][valid], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "shift"])  # which takes padding for zeros
@given(seed=st.integers(0, 99))
def test_padding_between_tokens_is_not_there(name, seed):
    """What is left has the outputs of a text without it."""
    torch.manual_seed(seed)
    mixer, x, valid = build(name), tokens(1, 12), torch.rand(1, 12) < 0.6
    valid[0, -1] = True
    cos, sin = rotary(12)
    alone = mixer(x[valid][None], None, Context(rotary=(cos[:, valid[0]], sin[:, valid[0]])))
    among = mixer(x, None, Context(valid_BT=valid, rotary=(cos, sin)))
    torch.testing.assert_close(among[valid], alone[0], atol=1e-10, rtol=0)


@every_operator
def test_an_operator_that_keeps_something_between_calls_says_so(name):
    mixer, state = build(name), {}
    mixer(tokens(1, 9), None, Context(rotary=rotary(9), state=state))
    assert bool(state) == mixer.remembers


@torch.no_grad()
def test_keys_are_computed_when_somebody_asks_for_them():
    mixer, state, x = AttentionMixer(D, 2).double().eval(), {}, tokens(1, 7)
    asks = torch.tensor([[False, True, False, False, False, True, False]])
    rows = []
    mixer.key_value.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape[1]))
    for t in range(7):
        mixer(x[:, t : t + 1], Chosen(asks[:, t : t + 1]), Context(state=state))
    assert rows == [2, 4]


@pytest.mark.parametrize("keys", ["all", "routed"])
def test_a_step_of_generation_copies_no_context_until_the_room_is_used_up(keys):
    mixer, state, x = AttentionMixer(D, 2, keys).double().eval(), {}, tokens(2, 200)
    whole = mixer(x, None, Context(rotary=rotary(200)))
    places, outs = [], []
    with torch.no_grad():
        for t in range(200):
            cos, sin = rotary(200)
            here = (cos[:, t : t + 1], sin[:, t : t + 1])
            outs.append(mixer(x[:, t : t + 1], None, Context(rotary=here, state=state)))
            places.append(state["k"].data_ptr())
    torch.testing.assert_close(torch.cat(outs, 1), whole, atol=1e-12, rtol=0)
    assert len(set(places)) <= 4


def test_gradients_pass_through_a_state_whose_keys_have_none():
    """As with frozen embeddings and adapters on the queries only."""
    torch.manual_seed(0)
    mixer, x = AttentionMixer(8, 2), torch.randn(1, 6, 8)
    mixer.key_value.requires_grad_(False)
    context = Context(state={})
    pieces = [mixer(x[:, place], None, context) for place in (slice(0, 4), slice(4, 5), slice(5, 6))]
    found = torch.autograd.grad(torch.cat(pieces, 1).square().sum(), mixer.query.weight)
    expected = torch.autograd.grad(mixer(x).square().sum(), mixer.query.weight)
    torch.testing.assert_close(found, expected)


def test_dct_mixing_filters_the_spectrum_and_takes_a_spectrum_that_is_given():
    mixer, x = build("dct"), tokens(2, 5)
    spectrum = dct(x)
    torch.testing.assert_close(dct(mixer(x)), spectrum * mixer.filter, atol=1e-12, rtol=0)
    torch.testing.assert_close(mixer(x, None, Context(spectrum_BTP=packed_dct(x))), mixer(x))


def test_a_filter_of_ones_is_the_identity_and_of_zeros_nothing():
    x = tokens(2, 5).float()
    torch.testing.assert_close(DCTMixer(D, start=1.0)(x), x, atol=1e-5, rtol=0)
    assert not DCTMixer(D, start=0.0)(x).any()


@pytest.mark.parametrize("width", [32, 128, 256])
def test_rbf_mixing_really_mixes_at_the_start(width):
    """On unit-variance inputs of 64 tokens no token gives itself more than half of its weight on average."""
    x, mixer = torch.randn(4, 64, width), RBFMixer(width)
    kernel = rbf_kernel(x, mixer.log_gamma.exp()).tril()
    assert float((kernel.diagonal(dim1=1, dim2=2) / kernel.sum(-1)).detach().mean()) < 0.5
    # As the operator itself weighs them: what a push of one on a token's own value does to its output.
    with torch.no_grad():
        mixer.value.weight.copy_(torch.zeros(width, width))
        mixer.value.weight[0, 0] = 1.0
        mixer.value.bias.zero_()
    base = mixer(x)
    own = []
    for t in range(64):
        push = (torch.arange(64) == t)[None, :, None]
        hook = mixer.value.register_forward_hook(lambda module, args, out, push=push: out + push)
        own.append((mixer(x) - base)[:, t, 0])
        hook.remove()
    assert float(torch.stack(own).detach().mean()) < 0.5


def test_fitting_sets_the_bandwidth_to_the_median_heuristic():
    mixer, x = RBFMixer(D), 5.0 * torch.randn(2, 100, D)
    mixer.fit(x)
    distances = torch.pdist(x.flatten(0, 1)).square()
    assert float(mixer.log_gamma.detach().exp()) == pytest.approx(1 / float(distances.median()), rel=1e-3)


def test_the_kernel_estimate_does_not_depend_on_where_the_data_lie():
    mixer, x, deviations = RBFMixer(D, features=256).double(), tokens(2, 40), []
    for offset in (0.0, 3.0, 100.0):
        mixer.fit(x + offset)
        exact = rbf_mix(x, mixer.value(x + offset), mixer.log_gamma.exp())
        deviations.append(mixer(x + offset) - exact)
    for deviation in deviations[1:]:
        torch.testing.assert_close(deviation, deviations[0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["rbf", "attention"])
def test_operators_that_are_not_causal_see_both_ways(name):
    mixer = (RBFMixer(D, 8, causal=False) if name == "rbf" else AttentionMixer(D, 2, causal=False)).double().eval()
    x, mask = tokens(2, 7), torch.rand(2, 7) < 0.5
    found = reach(mixer, x)
    assert all(found[b, :, b].all() for b in range(2))
    assert not found[0, :, 1].any()
    torch.testing.assert_close(mixer(x, Chosen(mask)), mixer(x)[mask], atol=1e-10, rtol=0)


both_ways = pytest.mark.parametrize("causal", [True, False])


@both_ways
def test_attention_without_positions_by_definition(causal):
    mixer, x = AttentionMixer(D, 2, causal=causal).double(), tokens(2, 5)
    q, k, v = (part.unflatten(-1, (2, D // 2)) for part in (mixer.query(x), *mixer.key_value(x).chunk(2, -1)))
    seen = [list(range(t + 1 if causal else 5)) for t in range(5)]
    heads = [[reference.attention(q[b, :, n], k[b, :, n], v[b, :, n], seen) for n in range(2)] for b in range(2)]
    expected = mixer.out(torch.stack([torch.cat(row, -1) for row in heads]))
    torch.testing.assert_close(mixer(x), expected, atol=1e-12, rtol=0)


@both_ways
def test_rbf_mixing_by_definition_of_its_kernel(causal):
    """The kernel is that of the features, with one on its diagonal; more features make it the exact one."""
    mixer, x = RBFMixer(D, 4096, causal).double(), 0.7 * tokens(2, 9)
    phi = rbf_features(x, mixer.frequencies_FD, mixer.log_gamma.exp())
    kernel = phi @ phi.mT
    kernel = kernel + torch.diag_embed(1 - kernel.diagonal(dim1=1, dim2=2))
    kernel = kernel.tril() if causal else kernel
    torch.testing.assert_close(mixer(x), kernel @ mixer.value(x) / kernel.sum(-1, keepdim=True), atol=1e-12, rtol=0)
    exact = torch.stack([reference.rbf_mix(x[b], mixer.value(x)[b], 1 / (2 * D), causal) for b in range(2)])
    assert float((mixer(x) - exact).abs().mean().detach()) < 0.02 * float(exact.abs().mean().detach())


def test_attention_alone_is_causal_under_every_implementation():
    config = tiny_config()
    config._attn_implementation = "eager"
    mixer = AttentionMixer.from_config(config).double().eval()
    assert not reach(mixer, tokens(1, 4))[0, :, 0].triu(1).any()


@pytest.mark.parametrize("chosen", [False, True])
def test_within_windows_tokens_attend_as_with_all_other_keys_hidden(chosen):
    mixer, x, T = build("window"), tokens(2, 9), 9
    everywhere = AttentionMixer(D, 2).double().eval()
    everywhere.load_state_dict(mixer.state_dict())
    valid, mask = torch.arange(T) >= torch.tensor([[0], [2]]), torch.rand(2, T) < 0.5
    context = Context(valid_BT=valid, rotary=rotary(T), attentions=[])
    found = mixer(x, Chosen(mask & valid) if chosen else None, context)
    for t in range(T):
        near = valid & (torch.arange(T) > t - mixer.window)
        expected = everywhere(x, None, Context(valid_BT=near, rotary=rotary(T)))[:, t]
        for b in range(2):
            if not chosen and valid[b, t]:
                torch.testing.assert_close(found[b, t], expected[b], atol=1e-12, rtol=0)
            elif mask[b, t] and valid[b, t]:
                place = int((mask & valid).flatten()[: b * T + t].sum())
                torch.testing.assert_close(found[place], expected[b], atol=1e-12, rtol=0)
    (weights,) = context.attentions
    shown = (mask & valid if chosen else valid).double()
    torch.testing.assert_close(weights.sum(-1), shown[:, None].expand(2, 2, T), atol=1e-12, rtol=0)
    assert not weights.tril(-mixer.window).any()


@given(T=st.integers(1, 9), past=st.integers(0, 5), window=st.integers(1, 12), seed=st.integers(0, 99))
def test_pairs_within_windows_are_counted_as_they_are_seen(T, past, window, seed):
    torch.manual_seed(seed)
    mask, valid = torch.rand(2, past + T) < 0.5, torch.arange(past + T) >= torch.tensor([[0], [1]])
    mask = mask & valid
    places = range(past, past + T)
    seen = [(b, t, s) for b in range(2) for t in places for s in range(max(0, t - window + 1), t + 1)]
    measured = Work.measured(mask, valid, past=past, window=window)
    assert measured.pairs == sum(bool(mask[b, t] and valid[b, s]) for b, t, s in seen)
    assert Work.measured(mask, valid, past=past, window=2**62).pairs == Work.measured(mask, valid, past=past).pairs
    every = torch.ones_like(mask)
    assert Work.measured(every, every, past=past, window=window).pairs == len(seen)
    assert Work.expected(2, T, past=past, window=window).pairs == pytest.approx(len(seen))


def test_a_window_without_a_token_is_refused():
    with pytest.raises(ValueError, match="a window has one token at least, got 0"):
        WindowMixer(16, 2, 0)


def test_the_feed_forward_network_takes_some_tokens_at_a_time_where_no_gradient_is_wanted(monkeypatch):
    network, x = FeedForward(D, 24).double().eval(), tokens(2, 9)
    whole, rows = network(x), []
    monkeypatch.setattr(feed_forward, "AT_A_TIME", 24 * 5)
    network.up.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape[:-1].numel()))
    with torch.no_grad():
        torch.testing.assert_close(network(x), whole, atol=1e-12, rtol=0)
    network(x)
    assert rows == [5, 5, 5, 3, 18]


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="16 does not divide into 3 heads"):
        AttentionMixer(16, 3)


def test_names_are_registered_once_and_unknown_ones_answered_with_the_known():
    with pytest.raises(
        ValueError, match="unknown operator 'fourier'; known operators: attention, dct, identity, linear, none, rbf"
    ):
        mixer_class("fourier")
    with pytest.raises(ValueError, match="'dct' is already registered"):
        register_mixer("dct")(FeedForward)
    assert register_mixer("dct")(DCTMixer) is DCTMixer
    for name in ("shift.v2", "2nd", "", "keys", "short_convolution", "meta_router"):
        with pytest.raises(ValueError, match=f"an operator cannot be called '{name}'"):
            register_mixer(name)


def test_features_beyond_half_precision_are_finite():
    mixer = RBFMixer(256).half()
    x = torch.randn(1, 5, 256)
    x[0, 2] = 3.0 * mixer.frequencies_FD[0].float() / mixer.frequencies_FD[0].float().std()
    mixed = mixer(x.half())
    assert mixed.dtype == torch.float16
    torch.testing.assert_close(mixed.float(), mixer.float()(x.half().float()), atol=2e-2, rtol=2e-2)


def test_flops_of_the_chosen_are_a_share_of_those_of_all():
    half, all_tokens = Work.expected(2, 64, 0.5), Work.expected(2, 64)
    for name in OPERATORS:
        mixer = build(name)
        free = name in ("none", "identity")
        assert mixer.flops(half).total < mixer.flops(all_tokens).total or (free and mixer.flops(all_tokens).total == 0)
    attention = build("attention")
    assert attention.flops(half).attention == attention.flops(all_tokens).attention / 2


@every_keys
@pytest.mark.parametrize("name", ["shift", "window"])
def test_an_operator_that_no_recipe_has_works_in_a_model_as_others_do(name, keys, tmp_path):
    model = tiny_model(layer_operators=[[name], [name, "attention"], ["rbf", name], ["attention"]], attention_keys=keys)
    assert_causal_and_apart(lambda x: model(inputs_embeds=x).logits, tokens(2, 5))
    prompt = ids(2, 4)
    full = model.generate(input_ids=prompt, max_new_tokens=6, do_sample=False, use_cache=False, pad_token_id=0)
    cached = model.generate(input_ids=prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(full, cached)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.float64)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    # Not to the last bit: where a tensor lies in memory may decide which way a product is computed.
    torch.testing.assert_close(again(prompt).logits, model(prompt).logits, atol=1e-12, rtol=0)
