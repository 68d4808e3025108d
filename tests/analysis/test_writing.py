"""A text as it is written."""

import threading
import time

import pytest
import torch
from tests.helpers import tiny_model

from chiaroscuro.analysis import route_text, write_text
from chiaroscuro.analysis.routing import layer_routes
from chiaroscuro.data import train_tokenizer

PROMPT = "to be or 🙂"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["to be or not to be, that is the question"] * 5, 300)


@pytest.mark.parametrize("recipe", ["chiar", "full_attention", "v2"])
def test_every_token_is_shown_with_the_route_it_has_in_the_whole_text(tokenizer, recipe):
    model = tiny_model(recipe, vocab_size=len(tokenizer)).float()
    steps = list(write_text(model, tokenizer, PROMPT, 12, temperature=0.0))
    assert len(steps) == 12
    given = len(tokenizer(PROMPT)["input_ids"])
    assert [len(step.route.tokens) for step in steps] == [given + count for count in range(12)]
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    made = model.generate(ids, max_new_tokens=12, do_sample=False)[:, :-1]
    whole = {trace.layer: trace for trace in model(made, output_routing=True).routing}
    last = steps[-1].route
    for layer in last.layers:
        if layer.layer in whole:
            assert layer.choice == whole[layer.layer].choice[0].tolist()
            assert layer.entropy == pytest.approx(whole[layer.layer].entropy[0].tolist(), abs=1e-5)
            assert sum(layer.shares.values()) == pytest.approx(1.0)
    written = "".join(last.tokens) + steps[-1].waiting
    assert written.replace("·", "").startswith(PROMPT)
    assert all(step.speed > 0 for step in steps[1:])


def test_the_speed_is_that_of_the_model_without_what_is_told_of_it(tokenizer, monkeypatch):
    def slow(*arguments):
        time.sleep(0.1)
        return layer_routes(*arguments)

    monkeypatch.setattr("chiaroscuro.analysis.writing.layer_routes", slow)
    model = tiny_model("chiar", vocab_size=len(tokenizer)).float()
    steps = list(write_text(model, tokenizer, PROMPT, 8, temperature=0.0))
    assert steps[-1].speed > 1 / 0.1


def test_shares_of_blended_operators_are_their_mean_gates(tokenizer):
    model = tiny_model("v1_three_operator", router="soft", vocab_size=len(tokenizer)).float()
    last = list(write_text(model, tokenizer, PROMPT, 6, temperature=0.0))[-1].route
    made = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    made = model.generate(made, max_new_tokens=6, do_sample=False)[:, :-1]
    for trace in model(made, output_routing=True).routing:
        assert last.layers[trace.layer].shares == pytest.approx(trace.shares(), abs=1e-4)


def test_who_stops_reading_stops_the_model(tokenizer):
    model = tiny_model(vocab_size=len(tokenizer)).float()
    before = threading.active_count()
    steps = write_text(model, tokenizer, PROMPT, 5000)
    next(steps)
    steps.close()
    assert threading.active_count() == before
    assert not model._forward_hooks


def test_time_and_room_end_a_text(tokenizer):
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=16).float()
    given = len(tokenizer(PROMPT)["input_ids"])
    assert len(list(write_text(model, tokenizer, PROMPT, 100))) == 16 - given
    assert len(list(write_text(model, tokenizer, PROMPT, 100, seconds=0.0))) == 1
    with pytest.raises(ValueError, match="the model takes no more"):
        next(write_text(model, tokenizer, PROMPT * 20, 1))
    with pytest.raises(ValueError, match="the prompt is empty"):
        next(write_text(model, tokenizer, "", 1))


def test_what_goes_wrong_in_the_model_is_raised_where_it_is_read(tokenizer, monkeypatch):
    model = tiny_model(vocab_size=len(tokenizer)).float()
    monkeypatch.setattr(model.model.layers[1], "forward", None)
    with pytest.raises(TypeError):
        next(write_text(model, tokenizer, PROMPT, 3))


def test_a_route_of_the_prompt_is_that_of_reading_it(tokenizer):
    model = tiny_model(vocab_size=len(tokenizer)).float()
    first = next(write_text(model, tokenizer, PROMPT, 1))
    assert [layer.choice for layer in first.route.layers] == [
        layer.choice for layer in route_text(model, tokenizer, PROMPT).layers
    ]
