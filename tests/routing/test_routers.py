"""Routers: from entropy to gates."""

import itertools

import pytest
import torch
from tests.helpers import default_dtype, ids, tiny_model

from chiaroscuro.mixers import Context, IdentityMixer, NothingMixer
from chiaroscuro.ops import noise_entropy
from chiaroscuro.routing import (
    RoutedMixer,
    ThresholdRouter,
    noise_thresholds,
    register_router,
    router_class,
    router_names,
    starving,
    utilisation,
    utilisation_entropy,
)
from chiaroscuro.routing.learned_routers import EXPLORED, explored


def gates(router, entropy):
    entropy = torch.tensor([entropy])
    x = torch.randn(*entropy.shape, router.hidden_size)
    return router(x, entropy)[0]


def test_half_precision_leaves_the_thresholds_in_float32():
    router = ThresholdRouter(1024, 2, low=0.8935, high=0.8973)
    for dtype in (torch.bfloat16, torch.float16):
        assert router.to(dtype).thresholds.dtype == torch.float32
        assert router.thresholds.tolist() == pytest.approx([0.8935, 0.8973], abs=1e-7)
    assert router.double().thresholds.dtype == torch.float64
    with default_dtype(torch.bfloat16):
        made = ThresholdRouter(1024, 2, low=0.8935, high=0.8973)
    assert made.thresholds.tolist() == router.thresholds.tolist()


def test_two_operators_are_parted_by_the_mean_of_the_thresholds():
    router = ThresholdRouter(8, 2, low=0.4, high=0.6)
    assert gates(router, [0.0, 0.4, 0.5, 0.501, 1.0]).argmax(-1).tolist() == [0, 0, 0, 1, 1]


def test_three_operators_are_parted_by_both_and_the_middle_takes_the_bounds():
    router = ThresholdRouter(8, 3, low=0.25, high=0.75)
    assert gates(router, [0.0, 0.249, 0.25, 0.5, 0.75, 0.751, 1.0]).argmax(-1).tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_hard_gates_are_one_for_one_operator_and_zero_for_the_others():
    for name in ("threshold", "hard", "random"):
        found = gates(router_class(name)(8, 3), [0.1, 0.5, 0.9, 0.85])
        assert sorted(set(found.flatten().tolist())) == [0.0, 1.0]
        assert found.sum(-1).tolist() == [1.0] * 4


@pytest.mark.parametrize("thresholds", [(0.6, 0.4), (float("nan"), 0.5), (0.5, float("nan"))])
def test_thresholds_out_of_order_are_refused(thresholds):
    with pytest.raises(ValueError, match="tau_low <= tau_high"):
        ThresholdRouter(8, 2, low=thresholds[0], high=thresholds[1])
    with pytest.raises(ValueError, match="tau_low <= tau_high"):
        ThresholdRouter(8, 2).set_thresholds(*thresholds)


@pytest.mark.parametrize("name", router_names())
def test_a_router_takes_two_operators_or_as_many_as_it_can_choose_between(name):
    cls = router_class(name)
    beyond = [1] if cls.most_operators is None else [1, cls.most_operators + 1]
    for number in beyond:
        with pytest.raises(ValueError, match=f"{cls.__name__} takes 2 to .* operators, not {number}"):
            cls(8, number)
    assert cls(8, 2).num_operators == 2


@pytest.mark.parametrize(("D", "published"), [(256, (0.855, 0.865)), (1024, (0.8935, 0.8973))])
def test_thresholds_start_where_white_noise_and_the_published_ones_lie(D, published):
    low, high = noise_thresholds(D)
    assert low < noise_entropy(D) < high
    assert high - low == pytest.approx(published[1] - published[0], rel=0.2)
    assert low == pytest.approx(published[0], abs=0.012)


def test_noise_thresholds_part_noise_into_thirds():
    from chiaroscuro.ops import spectral_entropy

    low, high = noise_thresholds(256)
    entropy = spectral_entropy(torch.randn(20_000, 256))
    assert float((entropy < low).float().mean()) == pytest.approx(1 / 3, abs=0.03)
    assert float((entropy > high).float().mean()) == pytest.approx(1 / 3, abs=0.03)


def test_soft_gates_are_probabilities_of_vector_and_entropy():
    router = router_class("soft")(8, 3)
    x, entropy = torch.randn(2, 5, 8), torch.rand(2, 5)
    found = router(x, entropy)
    expected = router.linear(torch.cat((x, entropy[..., None]), -1)).softmax(-1)
    torch.testing.assert_close(found, expected)


def test_the_straight_through_gradient_is_that_of_the_chosen_probability():
    router = router_class("hard")(8, 3).double()
    x, entropy = torch.randn(1, 6, 8, dtype=torch.float64), torch.rand(1, 6, dtype=torch.float64)
    weights = torch.randn(1, 6, 3, dtype=torch.float64)
    gates = router(x, entropy)
    (hard,) = torch.autograd.grad((gates * weights).sum(), router.linear.weight)
    soft = router.linear(torch.cat((x, entropy[..., None]), -1)).softmax(-1)
    chosen = soft.argmax(-1, keepdim=True)
    (expected,) = torch.autograd.grad((soft * weights).gather(-1, chosen).sum(), router.linear.weight)
    torch.testing.assert_close(hard, expected)


def test_random_choices_are_even_repeatable_and_differ_by_token_position_and_layer():
    tokens = Context(ids_BT=torch.randint(500, (4, 10_000)))
    x, entropy = torch.zeros(4, 10_000, 8), torch.zeros(4, 10_000)
    first, second = (router_class("random")(8, 3, layer)(x, entropy, tokens).argmax(-1) for layer in (0, 1))
    for choice in (first, second):
        assert torch.bincount(choice.flatten()).tolist() == pytest.approx([40_000 / 3] * 3, rel=0.03)
    agree = float((first == second).float().mean())
    assert agree == pytest.approx(1 / 3, abs=0.02)
    neighbours = float((first[:, 1:] == first[:, :-1]).float().mean())
    assert neighbours == pytest.approx(1 / 3, abs=0.02)
    piece = Context(positions_BT=torch.arange(50, 60)[None], ids_BT=tokens.ids_BT[:, 50:60])
    again = router_class("random")(8, 3, 0)(x[:, 50:60], entropy[:, 50:60], piece).argmax(-1)
    assert torch.equal(again, first[:, 50:60])


def test_the_hash_sends_a_token_the_same_way_wherever_it_stands_and_another_way_in_another_layer():
    torch.manual_seed(0)
    tokens = torch.arange(5000).repeat(2, 2)
    x = torch.zeros(2, 10_000, 8)
    for share in (0.0, 0.125, 0.5, 1.0):
        first, second = (router_class("hash")(8, 2, layer, share)(x, None, Context(ids_BT=tokens)) for layer in (0, 1))
        choice, other = first[..., 1].view(2, 2, 5000), second[..., 1].view(2, 2, 5000)
        assert torch.equal(choice, choice[:1, :1].expand_as(choice))
        assert float(choice.mean()) == pytest.approx(share, abs=0.02)
        assert float((choice * other).mean()) == pytest.approx(share**2, abs=0.02)
    three = router_class("hash")(8, 3)(x, None, Context(ids_BT=tokens.int())).argmax(-1)
    assert torch.bincount(three.flatten()).tolist() == pytest.approx([20_000 / 3] * 3, rel=0.05)
    with pytest.raises(ValueError, match="router 'hash' goes by the ids of tokens: give input_ids"):
        router_class("hash")(8, 2)(x, None)


def test_every_model_hashes_in_its_own_way_and_keeps_it(tmp_path):
    tokens = Context(ids_BT=torch.arange(5000)[None])
    x = torch.zeros(1, 5000, 8)
    torch.manual_seed(0)
    first, other = (router_class("hash")(8, 2, 0, 0.5)(x, None, tokens)[..., 1] for _ in range(2))
    torch.manual_seed(0)
    again = router_class("hash")(8, 2, 0, 0.5)(x, None, tokens)[..., 1]
    assert torch.equal(first, again)
    assert float((first * other).mean()) == pytest.approx(0.25, abs=0.02)
    model = tiny_model("chiar", router="hash")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(ids(2, 40)).logits, model(ids(2, 40)).logits, atol=1e-12, rtol=0)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_random_choices_are_the_same_under_another_default_precision(share):
    router, x = router_class("random")(8, 2, 1, share), torch.zeros(50, 1000, 8)
    context = Context(ids_BT=ids(50, 1000))
    wanted = router(x, None, context)
    assert share < 1.0 or wanted[..., 1].all()
    with default_dtype(torch.bfloat16):
        assert torch.equal(router(x, None, context), wanted)


@pytest.mark.parametrize("name", ["random", "interleaved"])
@pytest.mark.parametrize("share", [None, 0.3])
def test_controls_choose_the_same_for_smaller_integers(name, share):
    router, x = router_class(name)(8, 2, 1, share), torch.zeros(2, 90, 8)
    given = {"positions_BT": torch.arange(2000, 2090)[None], "ids_BT": torch.randint(50_000, (2, 90))}
    smaller = Context(**{key: value.int() for key, value in given.items()})
    assert torch.equal(router(x, None, smaller), router(x, None, Context(**given)))


def test_interleaved_choices_take_turns_by_position_and_by_layer():
    router = router_class("interleaved")(8, 3)
    assert gates(router_class("interleaved")(8, 3, 1), [0.5] * 4).argmax(-1).tolist() == [1, 2, 0, 1]
    assert gates(router, [0.5] * 7).argmax(-1).tolist() == [0, 1, 2, 0, 1, 2, 0]
    later = Context(positions_BT=torch.tensor([[4, 5]]))
    assert router(torch.zeros(1, 2, 8), torch.zeros(1, 2), later).argmax(-1).tolist() == [[1, 2]]


@pytest.mark.parametrize("share", [0.0, 0.125, 0.3, 1.0])
@pytest.mark.parametrize("name", ["random", "interleaved"])
def test_controls_keep_to_a_share_and_give_a_piece_what_they_give_the_whole(name, share):
    router = router_class(name)(8, 2, 1, share)
    x, entropy = torch.zeros(4, 5000, 8), torch.zeros(4, 5000)
    tokens = torch.randint(500, (4, 5000))
    choice = router(x, entropy, Context(ids_BT=tokens)).argmax(-1)
    off = 0.0 if share in (0.0, 1.0) else {"random": 0.015, "interleaved": 1 / 5000}[name]
    assert float(choice.double().mean()) == pytest.approx(share, abs=off)
    assert router.shares == (1 - share, share)
    piece = Context(positions_BT=torch.arange(777, 900)[None], ids_BT=tokens[:, 777:900])
    again = router(x[:, 777:900], entropy[:, 777:900], piece).argmax(-1)
    assert torch.equal(again, choice[:, 777:900])
    if name == "interleaved" and share == 0.125:
        assert choice[0].nonzero().flatten().diff().unique().tolist() == [8]


@pytest.mark.parametrize("name", ["random", "interleaved", "hash", "benefit"])
def test_no_share_of_two_operators_is_a_half_and_a_dense_start_adds_to_it(name):
    torch.manual_seed(0)
    halved, without = (router_class(name)(8, 2, 1, share) for share in (0.5, None))
    without.load_state_dict(halved.state_dict())
    x, tokens = torch.randn(4, 500, 8), Context(ids_BT=torch.randint(500, (4, 500)))
    assert torch.equal(halved.eval()(x, None, tokens), without.eval()(x, None, tokens))
    chosen = []
    for dense in (0.0, 0.25, 0.5, 1.0):
        without.dense = dense
        assert without.shares == (0.5 - dense / 2, 0.5 + dense / 2)
        if isinstance(without, ThresholdRouter):
            without.set_thresholds(*[float(without.score(x, None, tokens).quantile(without.quantiles[0])) - 1e-6] * 2)
        chosen.append(without(x, None, tokens)[..., 1])
        assert float(chosen[-1].mean()) == pytest.approx(without.shares[1], abs=0.04)
    if name != "interleaved":  # which spreads each share anew
        assert all(bool((more >= less).all()) for less, more in itertools.pairwise(chosen))


def test_without_a_share_operators_are_expected_to_get_the_same():
    for name in ("threshold", "hard", "random", "interleaved"):
        assert router_class(name)(8, 3).shares == (1 / 3, 1 / 3, 1 / 3)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), True, "half"])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\]"):
        router_class("random")(8, 2, 0, share)


def test_a_share_parts_the_tokens_between_two():
    with pytest.raises(ValueError, match="between two operators, not 3"):
        ThresholdRouter(8, 3, share=0.5)


def test_the_learned_router_holds_its_score_against_the_threshold_and_learns_from_the_chosen_probability():
    router = router_class("learned")(8, 2).double()
    router.set_thresholds(-0.3, 0.5)
    x = torch.randn(1, 50, 8, dtype=torch.float64)
    found = router(x, torch.zeros(1, 50))
    score = x @ router.linear.weight[0]
    chosen = (score > 0.1).long()
    assert torch.equal(found.argmax(-1), chosen)
    assert 0 < int(chosen.sum()) < 50
    weights = torch.randn(1, 50, 2, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((found * weights).sum(), router.linear.weight)
    probability = torch.stack(((0.1 - score).sigmoid(), (score - 0.1).sigmoid()), -1)
    picked = (probability * weights).gather(-1, chosen[..., None]).sum()
    (expected,) = torch.autograd.grad(picked, router.linear.weight)
    torch.testing.assert_close(gradient, expected)
    with pytest.raises(ValueError, match="tau_low <= tau_high"):
        router.set_thresholds(1.0, 0.0)


def test_the_benefit_router_explores_a_part_of_the_tokens_in_training_and_none_otherwise():
    torch.manual_seed(0)
    router, x = router_class("benefit")(8, 2), torch.randn(1, 20_000, 8)
    router.set_thresholds(0.0, 0.1)
    found = router.eval()(x, torch.zeros(1, 20_000))[..., 1]
    assert torch.equal(found, (router.score(x, x) > 0.05).float())
    gates = router.train()(x, torch.zeros(1, 20_000)).detach()
    assert torch.equal(gates.sum(-1), torch.ones(1, 20_000))
    explored = (gates[..., 1] > 0) & (gates[..., 1] < 1)
    assert float(explored.float().mean()) == pytest.approx(EXPLORED, abs=0.01)  # four deviations
    assert float(gates[..., 1][explored].mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(gates[..., 1][~explored], found[~explored])


def test_random_tokens_are_explored_alike():
    torch.manual_seed(0)
    alike, plain = (router_class(name)(8, 2, 1, 0.25) for name in ("random_explored", "random"))
    x, tokens = torch.randn(1, 20_000, 8), Context(ids_BT=torch.randint(500, (1, 20_000)))
    expected = plain(x, None, tokens)
    assert torch.equal(alike.eval()(x, None, tokens), expected)
    gates = alike.train()(x, None, tokens)
    explored = (gates[..., 1] > 0) & (gates[..., 1] < 1)
    assert float(explored.float().mean()) == pytest.approx(EXPLORED, abs=0.01)
    assert torch.equal(gates[~explored], expected[~explored])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_whoever_is_explored_goes_to_both_operators_in_any_precision(dtype, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("chiaroscuro.routing.learned_routers.EXPLORED", 1.0)
    second, found = explored(torch.zeros(1, 200_000, dtype=dtype), Context())
    assert found.all()
    assert second.dtype == dtype
    assert ((second > 0) & (1 - second > 0)).all()
    assert float(second.float().mean()) == pytest.approx(0.5, abs=0.005)


def test_the_scores_are_fitted_to_the_whole_difference_that_the_second_operator_makes():
    """Where the loss is flat at a gate of one, what more of the operator would gain tells nothing."""
    torch.manual_seed(0)
    router = router_class("benefit")(2, 2).double().train()
    x = torch.randn(1, 200_000, 2, dtype=torch.float64)
    gates = router(x, torch.zeros(1, 200_000))
    # A token loses x_0 (1 - a)^2 with a gate of a: x_0 less in all, with a derivative of zero at a = 1.
    (x[..., 0] * (1 - gates[..., 1]).square()).sum().backward()
    gate, score = gates[..., 1].detach(), router.score(x, x).detach()
    explored = (gate > 0) & (gate < 1)
    derivative = 2 * x[..., 0] * (1 - gate)
    unit = derivative[explored].square().mean().sqrt()
    # Least squares for the score, in units of their root mean square, against gains of x_0 on average.
    expected = ((unit * score - x[..., 0])[explored][:, None] * x[explored]).sum(0)
    torch.testing.assert_close(router.linear.weight.grad[0], expected, atol=200, rtol=0.02)


def test_the_gradient_of_a_fitted_score_follows_the_scale_of_the_loss():
    """As accumulated gradients and scaled losses need it."""
    x, found = torch.randn(1, 200, 8, dtype=torch.float64), []
    router = router_class("benefit")(8, 2).double().train()
    for scale in (1.0, 1024.0):
        router.zero_grad()
        torch.manual_seed(0)
        (scale * (x[..., 0] * router(x, None)[..., 1]).square().sum()).backward()
        found.append(router.linear.weight.grad / scale)
    torch.testing.assert_close(found[1], found[0])
    assert found[0].abs().sum() > 0


def test_the_benefit_router_finds_the_tokens_for_which_the_second_operator_is_right():
    """Tokens whose first channel is positive should be left as they are, the others set to zero; half of the loss that
    this takes is got by either operator alone."""
    torch.manual_seed(0)
    mixer = RoutedMixer({"none": NothingMixer(), "identity": IdentityMixer()}, router_class("benefit")(4, 2)).train()
    optimizer = torch.optim.Adam(mixer.parameters(), lr=0.01)
    for _ in range(200):
        x = torch.randn(4, 64, 4)
        out, _ = mixer(x)
        loss = (out - x * (x[..., :1] > 0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mixer.eval().router.set_thresholds(0.0, 0.0)
    x = torch.randn(4, 500, 4)
    _, routing = mixer(x)
    assert float((routing.choice_BT == (x[..., 0] > 0)).float().mean()) > 0.9


def test_an_unknown_router_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown router 'oracle'; known routers: benefit, hard, hash, interleaved, "):
        router_class("oracle")


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match=r"router 'random' is already registered, by .*\.RandomRouter"):
        register_router("random")(ThresholdRouter)
    assert register_router("threshold")(ThresholdRouter) is ThresholdRouter


def test_utilisation_leaves_padding_out_and_collapse_is_found():
    gates_BTO = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]]])
    q = utilisation(gates_BTO)
    assert q.tolist() == [0.75, 0.25]
    assert float(utilisation_entropy(q)) == pytest.approx(0.5623, abs=1e-4)
    assert float(utilisation_entropy(torch.tensor([1.0, 0.0]))) == 0.0
    assert starving(torch.tensor([0.995, 0.005]), ("dct", "rbf")) == ["rbf"]
    assert starving(q, ("dct", "rbf")) == []


def test_the_regulariser_moves_gates_towards_even_use():
    logits = torch.tensor([2.0, 0.0], requires_grad=True)
    utilisation_entropy(logits.softmax(-1)).backward()
    assert logits.grad[0] < 0 < logits.grad[1]


@pytest.mark.parametrize("name", ["learned", "benefit"])
def test_learned_scores_are_not_rounded_to_half_precision(name):
    torch.manual_seed(0)
    router, x = router_class(name)(32, 2), torch.randn(1, 2000, 32)
    exact = router.score(x, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router.score(x, None), exact)
    halved = router.to(torch.bfloat16).score(x.bfloat16(), None)
    assert halved.dtype == torch.float32
    assert len(halved.unique()) > 1900


@pytest.mark.parametrize("name", ["soft", "hard"])
def test_the_entropy_that_is_learned_from_is_not_rounded_to_half_precision(name):
    torch.manual_seed(0)
    router, x, entropy = router_class(name)(8, 2), torch.zeros(1, 2000, 8), torch.rand(1, 2000)
    exact = router.probabilities(x, entropy)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router.probabilities(x, entropy), exact)
    halved = router.to(torch.bfloat16)
    assert len(halved.probabilities(x.bfloat16(), entropy)[..., 0].unique()) > 1900
    assert halved(x.bfloat16(), entropy).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["hard", "learned", "benefit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gate_of_the_chosen_operator_is_exactly_one(name, dtype):
    router = router_class(name)(8, 2).to(dtype).eval()
    found = router(torch.randn(1, 2000, 8, dtype=dtype), torch.rand(1, 2000))
    assert set(found.unique().tolist()) == {0.0, 1.0}


def test_padding_is_not_explored_and_does_not_change_what_a_router_is_fitted_to(monkeypatch):
    monkeypatch.setattr("chiaroscuro.routing.learned_routers.EXPLORED", 1.0)
    router = router_class("benefit")(8, 2).double().train()
    valid_BT = torch.arange(400)[None] < 100
    x, found = torch.randn(1, 400, 8, dtype=torch.float64), []
    for tokens, context in ((x[:, :100], Context()), (x, Context(valid_BT=valid_BT))):
        router.zero_grad()
        gates = router(tokens, None, context)[..., 1]
        (tokens[:, :100, 0] * gates[:, :100].square()).sum().backward()
        found.append(router.linear.weight.grad.clone())
        if context.valid_BT is not None:
            assert set(gates[~valid_BT].tolist()) <= {0.0, 1.0}
    # The gates are drawn anew, so the two agree up to chance, and not by a factor of the padding.
    assert float(found[1].norm() / found[0].norm()) == pytest.approx(1.0, abs=0.3)
