"""Routes of a text and their pictures."""

import io

import pytest
import torch
from matplotlib import image
from rich.console import Console

from chiaroscuro import ChiarConfig, ChiarForCausalLM
from chiaroscuro.analysis import png, route_text, terminal
from chiaroscuro.analysis.html import _shade
from chiaroscuro.analysis.render import DARK_INK, LIGHT_INK, OTHERS, PALETTE, colour, contrast, ink, luminance, visible
from chiaroscuro.data import train_tokenizer
from chiaroscuro.mixers import operator_names

HOSTILE = "\x1b[31mred\x1b[0m <b>bold</b> $x^2$ 🙂 שלום\ttab\nline"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["to be or not to be, that is the question\n" * 5], 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = ChiarConfig.from_recipe("v2", vocab_size=len(tokenizer), hidden_size=16, num_attention_heads=2)
    return ChiarForCausalLM(config).eval()


@pytest.mark.parametrize("text", ["to be or not to be", HOSTILE, "a"])
def test_every_token_has_a_place_in_every_layer(model, tokenizer, text):
    route = route_text(model, tokenizer, text)
    count = len(tokenizer(text)["input_ids"])
    assert len(route.tokens) == len(route.meta_gate) == count
    assert [layer.operators for layer in route.layers] == model.config.layer_operators
    for layer in route.layers:
        assert len(layer.choice) == count
        assert len(layer.entropy) == (count if len(layer.operators) > 1 else 0)
        for index, name in enumerate(layer.operators):
            assert layer.shares[name] == pytest.approx(layer.choice.count(index) / count, abs=1e-6)


def test_the_tokens_of_a_route_are_the_text(model, tokenizer):
    assert "".join(token for token in route_text(model, tokenizer, HOSTILE).tokens if token != "·") == HOSTILE


def test_empty_text_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="the text is empty"):
        route_text(model, tokenizer, "")


def test_the_terminal_shows_a_layer_a_row_and_lets_no_escape_through(model, tokenizer):
    console = Console(record=True, width=200, color_system="truecolor", file=io.StringIO())
    console.print(terminal(route_text(model, tokenizer, HOSTILE)))
    plain = console.export_text()
    assert [f"layer {number}:" in plain for number in (1, 2, 3, 4, 5)] == [True] * 4 + [False]
    assert "entropy 0." in plain
    assert "\x1b" not in plain
    assert "⏎" in plain


def test_the_picture_holds_the_colours_of_the_operators(model, tokenizer, tmp_path):
    png(route_text(model, tokenizer, HOSTILE * 5), tmp_path / "route.png")
    pixels = image.imread(tmp_path / "route.png")[..., :3]
    for operator in ("dct", "attention"):
        wanted = [int(PALETTE[operator][place : place + 2], 16) / 255 for place in (1, 3, 5)]
        assert (abs(pixels - wanted).max(-1) < 0.01).mean() > 0.02


def test_lighter_operators_are_cheaper_and_ink_can_be_read_on_each():
    shades = [PALETTE[name] for name in ("none", "dct", "rbf", "attention")]
    assert sorted(shades, key=luminance, reverse=True) == shades
    assert [ink(shade) for shade in shades] == [DARK_INK, DARK_INK, DARK_INK, LIGHT_INK]


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21.0)
    assert contrast("#777777", "#FFFFFF") == contrast("#FFFFFF", "#777777") == pytest.approx(4.48, abs=0.005)


def test_ink_has_the_better_contrast_on_every_colour():
    colours = {*PALETTE.values(), *OTHERS, *map(colour, operator_names())}
    assert min(contrast(ink(each), each) for each in colours) >= 4.5
    for background in colours | {_shade(step / 255) for step in range(256)}:
        assert contrast(ink(background), background) == max(
            contrast(each, background) for each in (DARK_INK, LIGHT_INK)
        )


def test_control_characters_are_shown_as_dots():
    assert visible("a\x00b\x1b\u202ec\n") == "a·b··c⏎"
