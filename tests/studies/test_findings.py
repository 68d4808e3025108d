"""Verdicts follow the numbers."""

import json

import pytest

from chiaroscuro.studies import STUDIES, report
from chiaroscuro.studies.findings import FAILS, HOLDS, OPEN, WEAKER

LARGE = [study for study in STUDIES.values() if study.name != "smoke"]


def verdict(page: str, title: str) -> str:
    section = page.split(f". {title}\n", 1)[1].split("\n## ", 1)[0]
    return section.split("**Verdict: ", 1)[1].split(".**", 1)[0]


def test_verdicts_follow_the_numbers(write, tmp_path):
    for study in LARGE:
        write(study)
    routed, full = "DCT and attention, threshold", "full attention, v1"

    def place(*names: str):
        """These studies alone, which are sooner read than all."""
        return [STUDIES[name] for name in names], tmp_path / "results", tmp_path / "results.md"

    quality = place("ablation", "controls", "rates")
    assert verdict(report(*quality), "Control: is entropy a better router than chance?") == OPEN

    write(STUDIES["rates"], {routed: 3.2})
    assert verdict(report(*quality), "A 45 % better perplexity").startswith(
        f"{HOLDS} against the published baseline; not settled against the pre-norm one"
    )
    write(STUDIES["controls"], {"entropy": 3.2})
    assert verdict(report(*quality), "A 45 % better perplexity") == HOLDS
    write(STUDIES["rates"], {routed: 3.8})
    assert verdict(report(*quality), "A 45 % better perplexity") == "holds in direction, not in size"
    write(STUDIES["rates"], {full: 3.2})
    assert verdict(report(*quality), "A 45 % better perplexity") == FAILS

    title = "Control: is entropy a better router than chance?"
    assert verdict(report(*quality), title) == f"{HOLDS} with pre-norm; {OPEN} with post-norm"
    for loss, noise in ((3.2, 0.01), (3.98, 0.0)):
        write(STUDIES["controls"], {"random": loss}, noise=noise)
        assert verdict(report(*quality), title) == f"{FAILS} with pre-norm; {OPEN} with post-norm"

    write(STUDIES["controls"], {"entropy": 3.2})
    for loss, expected in ((4.0, HOLDS), (3.2, OPEN), (3.1, FAILS)):
        write(STUDIES["vocabulary"], {"entropy": 3.2, "hash of the token": loss})
        found = verdict(report(*place("ablation", "controls", "vocabulary")), title)
        assert found == f"{HOLDS} with pre-norm; {OPEN} with post-norm; {expected} against a hash of the token"

    regime = place("ablation", "controls", "rates", "small_text", "listops_flat", "imdb")
    write(STUDIES["rates"], {routed: 3.2})
    write(STUDIES["small_text"], {routed: 4.5})
    write(STUDIES["listops_flat"], accuracy={routed: 0.4})
    write(STUDIES["imdb"], noise=0.001)
    places = "large text: {}; small text: {}; ListOps: {}; sentiment: {}"
    assert verdict(report(*regime), "An operating regime") == places.format(HOLDS, HOLDS, HOLDS, HOLDS)
    write(STUDIES["rates"], {routed: 3.8})
    write(STUDIES["small_text"], {routed: 3.5})
    write(STUDIES["listops_flat"], accuracy={routed: 0.7})
    write(STUDIES["imdb"], noise=0.1)
    assert verdict(report(*regime), "An operating regime") == places.format(WEAKER, FAILS, WEAKER, OPEN)
    # No difference: a claim of a size fails where its interval is too narrow to hold it.
    write(STUDIES["small_text"], noise=0.2)
    for noise, expected in ((0.01, FAILS), (0.3, OPEN)):
        write(STUDIES["listops_flat"], noise=noise)
        assert verdict(report(*regime), "An operating regime") == places.format(WEAKER, OPEN, expected, OPEN)

    routers = place("ablation", "collapse")
    starved = {"1": {"dct": 1.0, "rbf": 0.0}, "2": {"rbf": 0.5, "attention": 0.5}}
    nearly = {"1": {"dct": 0.98, "rbf": 0.02}, "2": {"rbf": 0.5, "attention": 0.5}}
    arms = ("three operators, soft", "three operators, hard")
    groups = "an operator starves under learned routers: {} with an RBF operator that mixes; {} with one that does not"
    for routing, noise, expected in (
        ({}, 0.01, FAILS),
        (dict.fromkeys(arms, starved), 0.01, HOLDS),
        (dict.fromkeys(arms[:1], starved), 0.01, "in 3 of 6 runs"),
        (dict.fromkeys(arms[:1], starved), 0.4, "in 2 to 3 of 6 runs"),  # the last seed at a standstill
        (dict.fromkeys(arms, nearly), 0.01, "in 0 to 6 of 6 runs"),
    ):
        write(STUDIES["ablation"], routing=routing, noise=noise)
        assert verdict(report(*routers), "Routing collapse") == groups.format(expected, FAILS)
    alike = {f"{arm}, RBF that mixes nothing": starved for arm in arms}
    write(STUDIES["ablation"])
    write(STUDIES["collapse"], routing=alike)
    assert verdict(report(*routers), "Routing collapse") == groups.format(FAILS, HOLDS)


def test_the_demo_is_as_good_where_the_interval_lies_within_two_per_cent(write, tmp_path):
    study = STUDIES["demo_seeds"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for loss, expected in ((4.0, HOLDS), (4.015, OPEN), (4.05, FAILS)):
        write(study, {"chiar": loss}, noise=0.003)
        page = report(*place)
        assert verdict(page, "Ours: what the demo shows") == expected
    assert "with the first seed: 57.4 at 0.002, 57.4 at 0.004 of `chiar`, 54.6 at 0.002, 54.6 at 0.004" in page


def test_half_of_the_attention_is_as_good_where_all_four_intervals_lie_within_two_per_cent(write, tmp_path):
    title, study = "Ours: full attention's quality, within two per cent, at half of its attention", STUDIES["half"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    halves = ("whole layers, 50 %", "post-norm, whole layers, 50 %")
    # Six seeds of two arms scatter by 0.0056: an interval of 0.72 per cent to either side.
    for losses, (pre, post) in (
        ((4.0, 4.01), (HOLDS, HOLDS)),
        ((4.0, 4.015), (HOLDS, OPEN)),
        ((4.0, 4.03), (HOLDS, FAILS)),
        ((4.018, 3.9), (OPEN, HOLDS)),
    ):
        write(study, dict(zip(halves, losses, strict=True)), noise=0.003)
        assert verdict(report(*place), title) == f"pre-norm: {pre}; post-norm: {post}"
    assert "standstill;" not in report(*place)
    (stalled,) = (tmp_path / "results" / "half" / "runs").glob("post-norm-full-attention_*_seed5.json")
    stalled.write_text(json.dumps(json.loads(stalled.read_text()) | {"loss": 6.4, "perplexity": 601.8}))
    page = report(*place)
    assert verdict(page, title) == f"pre-norm: {OPEN}; post-norm: {OPEN}"
    told = "Of post-norm, full attention, 1 of 6 seeds came to a standstill; the others have a perplexity of 54.93 on"
    assert told in page  # losses of 4.000, 4.003 ... 4.012


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("half", "Ours: full attention's quality, within two per cent, at a quarter of its attention"),
        ("deeper", "Ours: a quarter of the attention, in twice the layers and over windows twice as long"),
    ],
)
def test_a_quarter_is_as_good_where_it_is_so_on_both_texts(name, title, write, tmp_path):
    study = STUDIES[name]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for loss, expected in ((3.9, HOLDS), (4.01, HOLDS), (4.015, OPEN), (4.03, FAILS)):
        write(study, {"benefit, 25 %": loss}, noise=0.003)
        assert verdict(report(*place), title) == expected


def test_what_attends_of_a_text_is_told_beside_what_is_asked_for(write, tmp_path):
    routed = {"3": {"none": 0.4, "attention": 0.6}, "4": {"none": 0.5, "attention": 0.5}}
    write(STUDIES["half"], routing={"benefit, 25 %": routed})
    page = report([STUDIES["half"]], tmp_path / "results", tmp_path / "results.md")
    assert "attend in those two layers 55.0 % (test), 55.0 % (wikitext), 55.0 % (wikitext_tokenized)." in page


def test_a_convolution_is_held_against_none_in_both_models(write, tmp_path):
    title, study = "Ours: a short convolution in every layer", STUDIES["budgets"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for losses, expected in (((3.9, 4.1), (HOLDS, FAILS)), ((4.1, 3.9), (FAILS, HOLDS)), ((4.0, 4.0), (OPEN, OPEN))):
        write(study, dict(zip(("benefit, 25 %", "full attention"), losses, strict=True)))
        expected = f"{expected[0]} at a quarter of the attention; {expected[1]} with full attention"
        assert verdict(report(*place), title) == expected


def test_a_router_is_held_against_random_tokens_over_three_budgets(write, tmp_path):
    title, study = "Ours: a router that is fitted to what attention gains", STUDIES["budgets"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for loss, expected in ((4.0, OPEN), (3.9, HOLDS), (4.1, FAILS)):
        write(study, {"benefit, 25 %": loss, "benefit, 37.5 %": loss})
        assert verdict(report(*place), title) == expected
    better = {"benefit, 25 %": 3.9, "benefit, 37.5 %": 3.9}
    write(study, better | {"random, explored, 25 %": 3.9})
    assert verdict(report(*place), title) == f"{HOLDS}; {OPEN} where random tokens are explored too"
    write(study, better | {"random, explored, 12.5 %": 3.8})
    assert verdict(report(*place), title) == f"{HOLDS}; {FAILS} where random tokens are explored too"
    write(study, better | {"hash of the token, 25 %": 3.8})
    assert verdict(report(*place), title) == f"{HOLDS}; {FAILS} against a hash of the token"
    write(study, better | {"interleaved, 12.5 %": 3.8})
    assert verdict(report(*place), title) == f"{HOLDS}; {OPEN} against tokens at even distances"


def test_chosen_tokens_are_held_against_whole_layers_at_two_budgets(write, tmp_path):
    title, study = "Ours: chosen tokens of more layers, or all tokens of fewer", STUDIES["budgets"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for losses, expected in (((4.0, 4.0), OPEN), ((3.9, 4.0), HOLDS), ((4.0, 4.1), FAILS), ((3.9, 4.1), OPEN)):
        write(study, dict(zip(("benefit, 75 %", "benefit, 25 %"), losses, strict=True)) | {"no attention": 4.3})
        page = report(*place)
        assert verdict(page, title) == expected
    assert "Without any attention, in as large a model, perplexity differs by +35.0 % [" in page


def test_all_keys_for_chosen_tokens_are_held_against_near_keys_for_all_at_two_budgets(write, tmp_path):
    title, study = "Ours: all keys for chosen tokens, or near keys for all tokens", STUDIES["budgets"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for losses, expected in (((4.0, 4.0), OPEN), ((3.9, 4.0), HOLDS), ((4.0, 4.1), FAILS), ((3.9, 4.1), OPEN)):
        write(study, dict(zip(("benefit, 25 %", "benefit, 12.5 %"), losses, strict=True)))
        assert verdict(report(*place), title) == expected
    write(study, {"sliding window of 64": 4.05}, attention={"sliding window of 64": 0.22, "sliding window of 32": 0.12})
    said = "take 22.0 and 12.0 % of full attention's FLOPs; against full attention they have +5.1 % ["
    assert said in report(*place)


def test_the_dct_is_held_against_nothing_in_its_place(write, tmp_path):
    title, study = "Ours: the DCT against no operator", STUDIES["budgets"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for loss, noise, expected in (
        (4.0, 0.02, OPEN),
        (4.0, 0.0, FAILS),
        (3.97, 0.0, HOLDS),
        (3.99, 0.0, WEAKER),
        (4.1, 0.02, FAILS),
    ):
        write(study, {"with the DCT, benefit, 25 %": loss}, noise=noise)
        assert verdict(report(*place), title) == expected


def test_routed_keys_are_held_against_all_keys_at_the_same_tokens_on_both_texts(write, tmp_path):
    title, study = "Ours: only routed tokens as keys", STUDIES["half"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for loss, noise, expected in ((4.01, 0.003, HOLDS), (4.015, 0.003, OPEN), (4.03, 0.003, FAILS)):
        write(study, {"routed keys, benefit, 12.5 %": loss}, noise=noise)
        assert verdict(report(*place), title) == expected


def test_recall_holds_where_every_arm_at_half_of_the_attention_is_within_two_points(write, tmp_path):
    title, study = "Ours: recall at half of its attention", STUDIES["recall"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    good = {"full attention": 0.99, "whole layers, 50 %": 0.98, "every other layer": 0.99, "benefit, 25 %": 0.99}
    write(study, accuracy=good, noise=0.002)
    page = report(*place)
    assert verdict(page, title) == HOLDS
    assert "seeds of 3: whole layers, 50 % (3), every other layer (3), benefit, 25 % (3). The" in page
    assert "`chiar`, a quarter of the attention, by seed: 99.0, 98.8, 98.6 %" in page
    for by_seed, expected in (([0.99, 0.96, 0.99], OPEN), ([0.96, 0.99, 0.3], FAILS), ([0.96] * 3, FAILS)):
        write(study, accuracy=good | {"whole layers, 50 %": by_seed}, noise=0.002)
        assert verdict(report(*place), title) == expected
    write(study, accuracy=dict.fromkeys(good, 0.25), noise=0.002)  # where the twin cannot do it either
    assert verdict(report(*place), title) == OPEN


def test_a_dense_start_is_judged_by_recall_and_by_text(write, tmp_path):
    title, recall, text = "Ours: a dense start", STUDIES["recall"], STUDIES["budgets"]
    place = ([recall, text], tmp_path / "results", tmp_path / "results.md")
    started, without = "dense start, benefit, 25 %", "benefit, 25 %"
    write(text)
    write(recall, accuracy={"full attention": 0.99, started: 0.98, without: 0.6}, noise=0.002)
    page = report(*place)
    assert verdict(page, title) == f"{HOLDS} in recall; {OPEN} on text"
    assert "by seed: 98.0, 97.8, 97.6 %; without a dense start 60.0, 59.8, 59.6 %, a difference of +38.0 points" in page
    for loss, expected in ((3.9, HOLDS), (4.1, FAILS)):
        write(text, {f"dense start, benefit, {budget} %": loss for budget in ("25", "12.5")})
        assert verdict(report(*place), title) == f"{HOLDS} in recall; {expected} on text"
    write(text, {"dense start, benefit, 12.5 %": 3.8, started: 4.1})  # as claimed, on average
    assert verdict(report(*place), title) == f"{HOLDS} in recall; {HOLDS} on text"
    write(recall, accuracy={"full attention": 0.99, started: 0.9}, noise=0.002)
    assert verdict(report(*place), title) == f"{FAILS} in recall; {HOLDS} on text"
    write(recall, accuracy={"full attention": 0.5, started: 0.5}, noise=0.002)
    assert verdict(report(*place), title) == f"{OPEN} in recall; {HOLDS} on text"


def test_mixed_training_costs_little_where_the_interval_ends_below_five_per_cent(write, tmp_path):
    place = ([STUDIES["mixed"]], tmp_path / "results", tmp_path / "results.md")
    for loss, expected in ((4.0, HOLDS), (4.045, OPEN), (4.1, FAILS), (3.5, HOLDS)):
        write(STUDIES["mixed"], {"v2, causal MetaRouter, mixed": loss})
        assert verdict(report(*place), "Mixed training") == expected
