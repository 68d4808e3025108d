"""Which tokens get attention: word classes, and figures against their definitions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from chiaroscuro import ChiarConfig, ChiarForCausalLM
from chiaroscuro.analysis import Sample, study_tokens, word_classes
from chiaroscuro.analysis.tokens import _benefits, _best, _correlation, _losses, _mean, _picked_linearly
from chiaroscuro.routing import forced, recency
from chiaroscuro.studies.table import with_error

T, VOCAB = 24, 50


def model(seed: int, **fields) -> ChiarForCausalLM:
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = ChiarConfig.from_recipe("spectral", **sizes | fields)
    found = ChiarForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return found


def text(windows: int = 6) -> Sample:
    ids = torch.randint(VOCAB, (windows, T))
    random = np.random.default_rng(0)
    classes = random.choice(["determiner", "open word"], size=(windows, T - 1))
    return Sample(ids, classes, random.integers(1, 1000, (windows, T - 1)))


def test_word_classes_of_a_sentence():
    pieces = [
        "The",
        " cat",
        " sat",
        " on",
        " it",
        ",",
        " un",
        "believ",
        "ably",
        " and",
        " is",
        " 42",
        "nd",
        " don",
        "'t",
        ".",
    ]
    assert word_classes(pieces) == [
        *("determiner", "open word", "open word", "preposition", "pronoun", "punctuation"),
        *("piece of a word",) * 3,
        *("conjunction", "auxiliary", "number", "open word", "open word", "auxiliary", "punctuation"),
    ]
    assert word_classes([]) == []


def test_a_forced_layer_sends_tokens_where_it_is_told():
    net, ids = model(0), torch.randint(VOCAB, (2, T))
    router = net.model.layers[1].mixer.router
    free = net(ids, output_routing=True).routing[0].choice
    choice = torch.randint(-1, 2, (2, T))
    with forced(router, choice):
        found = net(ids, output_routing=True).routing[0].choice
    assert torch.equal(found, torch.where(choice >= 0, choice, free))
    assert torch.equal(net(ids, output_routing=True).routing[0].choice, free)
    one = torch.zeros(1, 1, dtype=torch.long)
    with forced(router, one), pytest.raises(ValueError, match=r"cannot be forced by a choice of \(1, 1\)"):
        net(ids)
    with pytest.raises(ValueError, match="operator 2 of a layer that has 2"), forced(router, choice + 1):
        pass


def test_the_loss_of_a_token_is_that_of_the_prediction_made_at_it():
    net, ids = model(0), torch.randint(VOCAB, (3, T))
    logits = net(ids).logits.detach().log_softmax(-1)
    expected = [[-float(logits[b, t, ids[b, t + 1]]) for t in range(T - 1)] for b in range(3)]
    np.testing.assert_allclose(_losses(net, ids), expected, atol=1e-5)


def test_the_benefit_of_a_token_is_the_loss_that_attention_takes_from_it():
    """One layer, routed keys off: the choice at a token changes the loss at that token only, so that the intervention
    must give what switching that token alone gives."""
    net, ids = model(0, num_hidden_layers=1, layer_operators=[["none", "attention"]]), torch.randint(VOCAB, (2, T))
    router = net.model.layers[0].mixer.router
    benefits = _benefits(net, net.model.layers[0], ids, 3, torch.Generator().manual_seed(0))
    with forced(router, torch.zeros(2, T, dtype=torch.long)):
        without = _losses(net, ids)
    with forced(router, torch.ones(2, T, dtype=torch.long)):
        with_attention = _losses(net, ids)
    assert np.abs(benefits).max() > 1e-3
    for benefit in benefits:
        np.testing.assert_allclose(benefit, without - with_attention, atol=1e-5)


def test_the_best_tokens_are_picked_and_judged_by_different_interventions():
    random = np.random.default_rng(0)
    noise = random.normal(size=(8, 40, 50))
    assert abs(_best(noise, 0.5)["value"]) < 0.05
    real = noise + random.choice([0.0, 10.0], size=(40, 50))
    assert _best(real, 0.4)["value"] == pytest.approx(10, abs=0.2)


def test_a_linear_score_finds_what_is_linear_in_the_token_and_nothing_in_noise():
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 50, 6))
    noise = random.normal(size=(40, 50))
    assert abs(_picked_linearly(x, noise, 0.25)["value"]) < 0.1
    # The mean of the upper quarter of normal numbers is 1.27.
    assert _picked_linearly(x, noise + 3 * x[..., 2], 0.25)["value"] == pytest.approx(3 * 1.27, abs=0.15)


def test_the_rank_correlation_and_its_error():
    random = np.random.default_rng(0)
    a = random.normal(size=(50, 20))
    b = 0.5 * a + random.normal(size=a.shape)
    found = _correlation(a, b)
    pairs_a, pairs_b = np.subtract.outer(a.ravel(), a.ravel()), np.subtract.outer(b.ravel(), b.ravel())
    ranks_a, ranks_b = (pairs_a > 0).sum(1), (pairs_b > 0).sum(1)
    assert found["value"] == pytest.approx(np.corrcoef(ranks_a, ranks_b)[0, 1], abs=1e-9)
    assert found["error"] == pytest.approx((1 - found["value"] ** 2) / 1000**0.5, rel=0.3)
    assert _correlation(a, np.exp(a))["value"] == pytest.approx(1.0)


def test_of_no_tokens_there_is_no_mean():
    assert _mean(np.full((4, 5), np.nan)) == {"value": None, "error": None}
    assert with_error(_mean(np.full((4, 5), np.nan)), 3) == "–"
    assert with_error(_mean(np.full((4, 5), 0.5)), 3) == "+0.500 ± 0.000"
    assert _correlation(np.zeros((4, 5)), np.arange(20.0).reshape(4, 5)) == {"value": None, "error": None}


def test_the_error_of_a_mean_is_over_windows():
    values = np.repeat(np.random.default_rng(0).normal(size=(100, 1)), 30, axis=1)
    assert _mean(values)["error"] == pytest.approx(values[:, 0].std() / 10, rel=0.2)


def test_the_figures_of_a_model():
    trained, untrained, sample = model(1), model(2), text()
    found = study_tokens(trained, untrained, sample, sample.ids_BT, pairs=2)
    assert list(found["layers"]) == ["1", "2"]
    assert found["tokens"] == 6 * (T - 1)
    with torch.no_grad():
        traces = trained(sample.ids_BT, output_routing=True).routing
    for trace, layer in zip(traces, found["layers"].values(), strict=True):
        assert sum(layer["histogram"]) == sum(layer["histogram_before"]) == found["tokens"]
        share = trace.choice[:, :-1].float().mean()
        for groups in (layer["by_class"], layer["by_frequency"]):
            assert sum(group["tokens"] for group in groups.values()) == found["tokens"]
            total = sum(group["tokens"] * group["attention"] for group in groups.values())
            assert total / found["tokens"] == pytest.approx(float(share), abs=1e-6)
        groups = [layer["benefit"][name]["value"] for name in ("recurring", "new", "all")]
        recur = float((recency(sample.ids_BT) > 0)[:, :-1].float().mean())
        assert recur * groups[0] + (1 - recur) * groups[1] == pytest.approx(groups[2])
        assert groups[0] != groups[1]
        rare, common = layer["by_frequency"]["0"], layer["by_frequency"]["4"]
        assert rare["tokens"] == pytest.approx(common["tokens"], abs=3)


def test_a_model_without_a_choice_is_refused():
    net = model(0, layer_operators=[["attention"]] * 4)
    with pytest.raises(ValueError, match="nothing to study"):
        study_tokens(net, net, text(), text().ids_BT)


def test_one_window_is_no_sample():
    sample = text()
    one = replace(sample, ids_BT=sample.ids_BT[:1], classes=sample.classes[:1], counts=sample.counts[:1])
    with pytest.raises(ValueError, match="one window of text is no sample"):
        study_tokens(model(0), model(0), one, one.ids_BT)
