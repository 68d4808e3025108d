"""What is known of a text that was read, with interventions; and the page that shows it."""

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import tiny_model
from torch.nn.functional import cross_entropy

from chiaroscuro.analysis import COLOURINGS, Force, fragment, next_tokens, page, route_text
from chiaroscuro.analysis.render import visible
from chiaroscuro.data import train_tokenizer
from chiaroscuro.flops import flops_ratios
from chiaroscuro.modeling import ChiarForSequenceClassification
from chiaroscuro.routing import at_share

TEXT = "to be or not to be, that is the question"
HOSTILE = "<script>alert(1)</script> \"'&amp; \x1b[31m \u202egnp\u202c שלום 🙂👩\u200d🚀 \x00\x07 </bdi><b onclick=x>"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT] * 5, 300)


@pytest.fixture
def model(tokenizer):
    return tiny_model(vocab_size=len(tokenizer))


def test_loss_rank_and_cost_are_those_of_the_model(tokenizer):
    # A convolution executes three outputs more than it plans.
    model = tiny_model(vocab_size=len(tokenizer), short_convolution=0)
    reading = route_text(model, tokenizer, TEXT)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    logits = model(ids).logits[0, :-1]
    assert reading.loss == pytest.approx(cross_entropy(logits, ids[0, 1:], reduction="none").tolist())
    for row, wanted, rank in zip(logits, ids[0, 1:], reading.rank, strict=True):
        assert row.argsort(descending=True).tolist().index(int(wanted)) + 1 == rank
    assert reading.perplexity == pytest.approx(float(model(ids, labels=ids).loss.exp()))
    ratios, spent = flops_ratios(model, ids), reading.spent
    assert spent.attention / spent.full_attention == pytest.approx(ratios["attention_ratio"])
    assert spent.total / spent.full_total == pytest.approx(ratios["total_ratio"])
    assert spent.executed / spent.full_total == pytest.approx(ratios["executed_ratio"])


@given(share=st.floats(0, 1), router=st.sampled_from(["threshold", "learned"]))
def test_a_share_is_that_part_of_the_tokens_in_every_layer(tokenizer, share, router):
    model = tiny_model(vocab_size=len(tokenizer), router=router)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reading = route_text(model, tokenizer, TEXT, share)
    count = len(reading.tokens)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    commonest = max(Counter(reading.tokens).values())  # the same score wherever it stands, in the lowest routed layer
    for layer in reading.layers:
        if layer.entropy:
            assert sum(layer.choice) == pytest.approx(share * count, abs=commonest / 2 + 1e-9)
        if layer.entropy and router == "threshold":  # those of the highest entropy
            assert [entropy > layer.thresholds[0] for entropy in layer.entropy] == list(map(bool, layer.choice))


def test_a_share_outside_the_range_and_a_share_after_an_error(model, tokenizer):
    with pytest.raises(ValueError, match="share must lie"), at_share(model, 1.5):
        pass
    before = model.model.layers[1].mixer.router.thresholds.clone()
    with pytest.raises(ValueError, match="empty"):
        route_text(model, tokenizer, "", 0.5)
    with pytest.raises(ValueError, match="outside the vocabulary"), at_share(model, 0.5):
        model(torch.full((1, 4), 10**6))
    assert torch.equal(model.model.layers[1].mixer.router.thresholds, before)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_forced_tokens_go_where_they_are_sent_and_change_the_logits(model, tokenizer):
    free = route_text(model, tokenizer, TEXT)
    everywhere = route_text(model, tokenizer, TEXT, force=[Force(1, None, "attention")])
    assert set(everywhere.layers[1].choice) == {1}
    place = free.layers[1].choice.index(0)
    one = route_text(model, tokenizer, TEXT, force=[Force(1, place, "attention")])
    flipped = [then != now for then, now in zip(free.layers[1].choice, one.layers[1].choice, strict=True)]
    assert flipped == [index == place for index in range(len(flipped))]
    last = len(free.tokens) - 1
    before = next_tokens(model, tokenizer, TEXT, last)
    assert before.exp().sum() == pytest.approx(1.0)
    assert not torch.allclose(before, next_tokens(model, tokenizer, TEXT, last, force=[Force(1, place, "attention")]))
    assert torch.equal(before, next_tokens(model, tokenizer, TEXT, last))
    if place:
        earlier = next_tokens(model, tokenizer, TEXT, place - 1, force=[Force(1, place, "attention")])
        assert torch.allclose(earlier, next_tokens(model, tokenizer, TEXT, place - 1))


@pytest.mark.parametrize(
    ("force", "told"),
    [
        (Force(9, None, "attention"), "there is no layer 10; the model has 4"),
        (Force(0, None, "attention"), "layer 1 sends tokens to dct, not to attention"),
        (Force(1, None, "rbf"), "layer 2 sends tokens to dct or attention, not to rbf"),
        (Force(1, 500, "dct"), "there is no token 501; the text has"),
    ],
)
def test_what_cannot_be_forced_is_named(model, tokenizer, force, told):
    with pytest.raises(ValueError, match=told):
        route_text(model, tokenizer, TEXT, force=[force])


class Shown(HTMLParser):
    """The elements of a page, and the text of its tokens in each kind of element that they stand in."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.tokens: dict[str, list[str]] = {"p": [], "li": []}
        self.lines: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "bdi":
            self.tokens[self.open[-1]].append("")
        if tag == "li":
            self.lines.append("")
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["bdi"]:
            self.tokens[self.open[-2]][-1] += data
        if self.open[-1:] == ["li"]:
            self.lines[-1] += data


@pytest.mark.parametrize("by", COLOURINGS)
@pytest.mark.parametrize("text", [TEXT, HOSTILE, "a"])
def test_the_page_holds_every_token_of_every_layer_escaped(model, tokenizer, text, by):
    reading = route_text(model, tokenizer, text)
    found = Shown(page(reading, "<title>", by))
    allowed = {
        *("html", "head", "meta", "title", "style", "body", "div", "h3", "p", "span", "bdi"),
        *("details", "summary", "ol", "li", "table", "tr", "th", "td"),
    }
    assert {tag for tag, _ in found.tags} <= allowed
    assert not any(name.startswith("on") or name in ("src", "href") for _, attrs in found.tags for name in attrs)
    shown = [visible(token) for token in reading.tokens] * len(reading.layers)
    assert found.tokens == {"p": shown, "li": shown}
    titles = [attrs["title"] for tag, attrs in found.tags if tag == "bdi" and "title" in attrs]
    assert len(titles) == len(shown)
    for number, title in enumerate(titles):
        layer, index = reading.layers[number // len(reading.tokens)], number % len(reading.tokens)
        assert title.startswith(f"token {index + 1}: {layer.operators[layer.choice[index]]}")
        assert (f"entropy {layer.entropy[index]:.4f}" in title) if layer.entropy else True
        assert title.endswith(f"rank {reading.rank[index - 1]}") if index else "rank" not in title
    assert found.lines == [" " + title.replace("\n", ", ") for title in titles], "keyboards are told less"
    page_text = fragment(reading, by)
    assert all(character not in page_text for character in "\x00\x07\x1b\u202e")


def test_entropy_and_loss_are_darkest_where_they_are_highest(model, tokenizer):
    reading = route_text(model, tokenizer, TEXT)
    for by, values, layer in (
        ("entropy", reading.layers[1].entropy, 2),
        ("loss", [min(reading.loss), *reading.loss], 1),
    ):
        row = re.search(rf'data-layer="{layer}">(.*?)</p>', fragment(reading, by), re.DOTALL)[1]
        shades = re.findall(r"background:(#\w{6})", row)
        assert shades[values.index(max(values))] == "#1f2a44"
        assert "#f3e9d2" in shades


def key(page):
    return re.sub("<[^>]+>", "|", re.search(r'<p class="key">(.*?)</p>', page)[1])


def test_the_key_says_where_there_is_nothing_to_be_coloured_by(model, tokenizer):
    reading, of_one = route_text(model, tokenizer, TEXT), route_text(model, tokenizer, "t")
    assert len(of_one.tokens) == 1
    classifier = route_text(ChiarForSequenceClassification(model.config).eval(), tokenizer, TEXT)
    twin = route_text(tiny_model("full_attention", vocab_size=len(tokenizer)), tokenizer, TEXT)
    loss, entropy = "|lowest loss of the text||highest loss of the text|", "|lowest entropy of the layer|"
    assert key(fragment(reading, "loss")) == f"{loss}|no loss: the first token|"
    assert key(fragment(of_one, "loss")) == "|no loss: the first token|"
    assert key(fragment(classifier, "loss")) == "|no loss: tokens are not predicted here|"
    assert key(fragment(reading, "entropy")).startswith(entropy)
    assert key(fragment(reading, "entropy")).endswith("|no entropy: a layer without a choice|")
    assert key(fragment(twin, "entropy")) == "|no entropy: a layer without a choice|"
    everywhere = replace(reading, layers=[layer for layer in reading.layers if layer.entropy])
    assert "no entropy" not in fragment(everywhere, "entropy")


def test_costs_and_the_share_of_every_layer_are_told(model, tokenizer):
    reading = route_text(model, tokenizer, TEXT)
    told = fragment(reading)
    assert f"{reading.spent.executed / reading.spent.full_total:.3f} of full attention" in told
    assert f"{reading.perplexity:.2f}" in told
    assert told.count("<h3>") == 4
    assert visible("\n") == "⏎"


def test_a_classifier_is_read_without_losses(tokenizer):
    config = tiny_model(vocab_size=len(tokenizer)).config
    reading = route_text(ChiarForSequenceClassification(config).eval(), tokenizer, TEXT)
    assert reading.loss == reading.rank == []
    assert reading.perplexity is None
    assert "rank" not in fragment(reading, "loss")
