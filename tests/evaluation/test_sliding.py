"""Perplexity by a sliding window against its definition."""

import math

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chiaroscuro import ChiarConfig, ChiarForCausalLM
from chiaroscuro.data import TokenWindows
from chiaroscuro.evaluation import evaluate, evaluate_sliding

VOCAB = 13
SIZES = np.arange(VOCAB)


@pytest.fixture(scope="module", params=["chiar", "gpt2"])
def model(request):
    torch.manual_seed(0)
    if request.param == "gpt2":
        config = GPT2Config(vocab_size=VOCAB, n_embd=16, n_head=2, n_layer=2, bos_token_id=0, eos_token_id=0)
        return GPT2LMHeadModel(config).double()
    config = ChiarConfig(vocab_size=VOCAB, hidden_size=16, num_attention_heads=2, initializer_range=0.5)
    return ChiarForCausalLM(config).double()


def text(length):
    return np.random.default_rng(0).integers(0, VOCAB, length).astype(np.uint16)


@pytest.mark.parametrize(
    ("length", "window", "stride"), [(40, 8, 1), (40, 8, 3), (41, 8, 7), (40, 10, 5), (8, 8, 4), (5, 8, 4), (2, 2, 1)]
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_each_token_is_predicted_once_with_the_context_it_is_due(model, length, window, stride, batch_size):
    tokens = text(length)
    result = evaluate_sliding(model, tokens, SIZES, window, stride, batch_size)
    model.eval()
    nats = 0.0
    for place in range(1, length):
        # The window it is new in ends at the first place of a window's end that lies behind it.
        end = min(length, window if place < window else window + -(-(place + 1 - window) // stride) * stride)
        seen = torch.from_numpy(tokens[max(0, end - window) : place].astype(np.int64))
        with torch.no_grad():
            nats -= math.log(float(model(seen[None], use_cache=False).logits[0, -1].softmax(-1)[tokens[place]]))
    assert result.tokens == length - 1
    assert result.loss == pytest.approx(nats / (length - 1), rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(nats / (length - 1)), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / SIZES[tokens[1:]].sum(), rel=1e-6)


def test_no_more_logits_are_made_than_are_wanted(model):
    """Of the first window all, of the next those of what is new, and of the token before it."""
    made = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: made.append(output.shape[1]))
    evaluate_sliding(model, text(40), SIZES, 16, 4)
    hook.remove()
    assert made == [16, 5, 5]


def test_windows_side_by_side_are_those_of_the_largest_stride():
    torch.manual_seed(0)
    model = ChiarForCausalLM(ChiarConfig(vocab_size=VOCAB, hidden_size=16, num_attention_heads=2)).double()
    tokens = text(50)  # seven windows of eight tokens that share one with their neighbour
    sliding = evaluate_sliding(model, tokens, SIZES, 8, 7)
    beside = evaluate(model, TokenWindows(tokens, 8), SIZES)
    assert sliding.tokens == beside.tokens == 49
    assert sliding.loss == pytest.approx(beside.loss, rel=1e-6)


@pytest.mark.parametrize("stride", [0, 8, 9])
def test_a_stride_that_skips_or_repeats_is_refused(model, stride):
    with pytest.raises(ValueError, match="stride must be at least 1 and less than the window of 8 tokens"):
        evaluate_sliding(model, text(40), SIZES, 8, stride)


def test_a_text_of_one_token_is_refused(model):
    with pytest.raises(ValueError, match="fewer than two tokens"):
        evaluate_sliding(model, text(1), SIZES, 8, 4)
