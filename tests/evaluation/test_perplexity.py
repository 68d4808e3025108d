"""Perplexity against its definition."""

import math

import numpy as np
import pytest
import torch

from chiaroscuro import ChiarConfig, ChiarForCausalLM
from chiaroscuro.data import TokenWindows
from chiaroscuro.evaluation import evaluate, unigram_perplexity

VOCAB, LENGTH = 13, 7


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ChiarConfig(vocab_size=VOCAB, hidden_size=16, num_attention_heads=2, initializer_range=0.5)
    return ChiarForCausalLM(config).double()


@pytest.fixture(scope="module")
def windows():
    return TokenWindows(np.random.default_rng(0).integers(0, VOCAB, 100).astype(np.uint16), LENGTH)


def test_loss_perplexity_and_bits_per_byte_by_definition(model, windows):
    sizes = np.arange(VOCAB)
    result = evaluate(model, windows, sizes, batch_size=4)
    nats, text_bytes, tokens = 0.0, 0, 0
    model.eval()
    for index in range(len(windows)):
        ids = windows[index]["input_ids"]
        probabilities = model(ids[None]).logits[0].softmax(-1)
        for place in range(LENGTH - 1):
            nats -= math.log(float(probabilities[place, ids[place + 1]].detach()))
            text_bytes += int(ids[place + 1])
            tokens += 1
    assert result.tokens == tokens
    assert result.loss == pytest.approx(nats / tokens, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-6)


def test_batch_size_changes_nothing_and_the_mode_is_left_alone(model, windows):
    model.train()
    results = [evaluate(model, windows, np.ones(VOCAB, dtype=int), batch_size=size) for size in (1, 5, 64)]
    assert model.training
    for result in results[1:]:
        assert result.loss == pytest.approx(results[0].loss, rel=1e-6)
        for layer, shares in result.routing.items():
            assert shares == pytest.approx(results[0].routing[layer], abs=1e-6)
            assert sum(shares.values()) == pytest.approx(1.0, abs=1e-6)


def test_unigram_perplexity_of_uniform_text_is_the_vocabulary_size():
    train = np.repeat(np.arange(10), 50)
    windows = TokenWindows(np.tile(np.arange(10), 9), 7)
    assert unigram_perplexity(train, windows, 10) == pytest.approx(10.0)


def test_unigram_perplexity_counts_only_predicted_tokens():
    train = np.array([0] * 97 + [1])
    windows = TokenWindows(np.array([1, 0, 0, 0, 1]), 4)  # one window: the first token and the rest are not predicted
    assert unigram_perplexity(train, windows, 2) == pytest.approx(100 / 98)


def test_bits_per_byte_are_not_told_where_bytes_are_not_known(model, windows):
    assert evaluate(model, windows, None).bits_per_byte is None


def test_long_windows_are_taken_fewer_at_a_time(model, windows, monkeypatch):
    taken = []
    monkeypatch.setattr("chiaroscuro.evaluation.perplexity.TOGETHER", 3 * LENGTH + 1)
    hook = model.register_forward_pre_hook(lambda _, args: taken.append(len(args[0])))
    with hook:
        evaluate(model, windows, None)
    assert len(windows) == 16
    assert taken == [3] * 5 + [1]


def test_a_failed_evaluation_leaves_the_mode_alone(model):
    model.train()
    with pytest.raises(ValueError, match="outside the vocabulary"):
        evaluate(model, TokenWindows(np.full(20, VOCAB), LENGTH), None)
    assert model.training
    assert torch.is_grad_enabled()
