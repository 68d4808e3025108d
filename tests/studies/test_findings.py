"""Verdicts follow the numbers."""

import json

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


def test_a_quarter_is_as_good_where_it_is_so_on_both_texts(write, tmp_path):
    title, study = "Ours: full attention's quality, within two per cent, at a quarter of its attention", STUDIES["half"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for loss, expected in ((3.9, HOLDS), (4.01, HOLDS), (4.015, OPEN), (4.03, FAILS)):
        write(study, {"benefit, 25 %": loss}, noise=0.003)
        assert verdict(report(*place), title) == f"on reviews: {expected}; on WikiText's text: {expected}"
    attending = {"3": {"none": 0.6, "attention": 0.4}, "4": {"none": 0.39, "attention": 0.61}}
    write(study, {"benefit, 25 %": 3.9}, noise=0.003, routing={"benefit, 25 %": attending})
    page = report(*place)  # whatever was counted on a part of the text
    assert verdict(page, title) == f"on reviews: {FAILS}; on WikiText's text: {FAILS}"
    assert "which takes 25.2 % and 25.2 % of full attention's attention FLOPs on reviews and on WikiText's" in page


def test_tokens_that_recur_are_as_good_in_twice_the_layers(write, tmp_path):
    title = "Ours: tokens that recur, in twice the layers and over windows twice as long"
    place = ([STUDIES["deeper"]], tmp_path / "results", tmp_path / "results.md")
    for loss, expected in ((3.9, HOLDS), (4.01, HOLDS), (4.015, OPEN), (4.03, FAILS)):
        write(STUDIES["deeper"], {"every token that recurs": loss}, noise=0.003)
        page = report(*place)
        assert verdict(page, title) == expected
    assert (
        "divided by full attention's: 1.030 (test). Of all tokens attend in those two layers 50.0 % (test), which "
        "takes 25.0 % of full attention's FLOPs; the random half takes 25.0 %."
    ) in page
    write(STUDIES["deeper"], {"every token that recurs": 3.9}, attention={"every token that recurs": 0.26})
    assert verdict(report(*place), title) == FAILS


def test_tokens_that_recur_are_as_good_on_source_code_and_on_reviews_each_by_itself(write, tmp_path):
    title, studies = "Ours: attention for the tokens of one layer of six that recur", ("budgets", "reviews")
    place = ([STUDIES[name] for name in studies], tmp_path / "results", tmp_path / "results.md")
    for losses, (code, reviews) in (
        ((4.0, 4.0), (HOLDS, HOLDS)),
        ((4.03, 4.0), (FAILS, HOLDS)),
        ((3.9, 4.02), (HOLDS, OPEN)),
    ):
        for name, loss in zip(studies, losses, strict=True):
            write(STUDIES[name], {"every token that recurs": loss, "no attention": 4.3}, noise=0.003)
        page = report(*place)
        assert verdict(page, title) == f"source code: {code}; reviews: {reviews}"
    assert "full attention's: 0.905 (test) on source code, 1.020 (test), 1.020 (wikitext) on reviews." in page
    assert "Without any attention: +35.0 % [" in page
    assert "which takes 25.0 and 25.0 % of full attention's FLOPs; the random half takes 25.0 and 25.0 %." in page
    write(STUDIES["half"])
    half = report([STUDIES[name] for name in (*studies, "half")], *place[1:])
    assert "in as large a model, perplexity differs by +35.0 % [" in half
    for study in map(STUDIES.get, studies):  # nor is it as good if it takes more of the attention than is said
        write(study, {"every token that recurs": 3.9}, noise=0.003, attention={"every token that recurs": 0.26})
    assert verdict(report(*place), title) == f"source code: {FAILS}; reviews: {FAILS}"
    write(STUDIES["reviews"], noise=0.003, attention={"every token that recurs": 0.1})
    assert verdict(report(*place), title) == f"source code: {FAILS}; reviews: {HOLDS}"


def test_what_attends_of_a_text_is_told_beside_what_is_asked_for(write, tmp_path):
    routed = {"3": {"none": 0.4, "attention": 0.6}, "4": {"none": 0.5, "attention": 0.5}}
    write(STUDIES["half"], routing={"benefit, 25 %": routed})
    page = report([STUDIES["half"]], tmp_path / "results", tmp_path / "results.md")
    assert "attend in those two layers 55.0 % (test), 55.0 % (wikitext), 55.0 % (wikitext_tokenized), which" in page


def test_a_convolution_is_held_against_none_in_both_models(write, tmp_path):
    title, study = "Ours: a short convolution in every layer", STUDIES["alternatives"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for losses, expected in (((3.9, 4.1), (HOLDS, FAILS)), ((4.1, 3.9), (FAILS, HOLDS)), ((4.0, 4.0), (OPEN, OPEN))):
        write(study, dict(zip(("every token that recurs", "full attention"), losses, strict=True)))
        assert verdict(report(*place), title) == f"{expected[0]} for `chiar`; {expected[1]} with full attention"


def test_tokens_that_recur_are_held_against_random_ones_over_three_budgets(write, tmp_path):
    title, study = "Ours: tokens that recur against random ones", STUDIES["budgets"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    budgets = ("37.5 %", "25 %", "12.5 %")
    for losses, tokens, attention in (
        ((4.0, 4.0, 4.0), OPEN, OPEN),
        ((3.9, 3.9, 4.0), HOLDS, HOLDS),
        ((3.8, 4.0, 4.0), HOLDS, OPEN),
        ((4.1, 4.1, 4.0), FAILS, FAILS),
    ):
        write(study, {f"recurrence, {each}": loss for each, loss in zip(budgets, losses, strict=True)})
        assert verdict(report(*place), title) == f"for as many tokens: {tokens}; for no more attention: {attention}"
    alike = {f"{router}, {each}": 3.9 for each in budgets for router in ("recurrence", "entropy")}
    write(study, alike)
    page = report(*place)
    assert "of attention: recurrence -9.5 % [" in page
    assert "; entropy -9.5 % [" in page
    assert "`recurrence` against tokens at even distances: -9.5 % [" in page
    taken = {"recurrence, 25 %": 0.3, "random, 12.5 %": 0.125}
    write(study, attention=taken)
    told = "take, in per cent, at 37.5 %, 25 %, 12.5 %: recurrence 25.0, 30.0, 25.0; entropy 25.0, 25.0, 25.0;"
    page = report(*place)
    assert told in page
    assert "; random 25.0, 25.0, 12.5." in page


def test_tokens_that_recur_are_held_against_those_of_a_learned_score(write, tmp_path):
    title, study = "Ours: tokens that recur against a score that learns what attention gains", STUDIES["alternatives"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for loss, expected in ((4.0, OPEN), (3.9, HOLDS), (4.1, FAILS)):
        write(study, {"recurrence, 12.5 %": loss})
        assert verdict(report(*place), title) == expected
    losses = {"recurrence, 12.5 %": 3.9, "benefit, 12.5 %": 3.9, "random, explored, 12.5 %": 4.1}
    write(study, losses, attention={"benefit, 12.5 %": 0.2})
    page = report(*place)
    assert "learned what attention gains at them: +0.0 % [" in page
    assert "tokens by a hash of which token it is: -9.5 % [" in page
    assert "random tokens of a model that does so too differ from others by +10.5 % [" in page
    assert "at 12.5 %: recurrence 25.0; benefit 20.0; random 25.0." in page


def test_chosen_tokens_are_held_against_whole_layers_at_two_budgets(write, tmp_path):
    title, study = "Ours: chosen tokens of more layers, or all tokens of fewer", STUDIES["budgets"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for losses, expected in (((4.0, 4.0), OPEN), ((3.9, 4.0), HOLDS), ((4.0, 4.1), FAILS), ((3.9, 4.1), OPEN)):
        write(study, dict(zip(("recurrence, 75 %", "recurrence, 25 %"), losses, strict=True)))
        assert verdict(report(*place), title) == f"for as many tokens: {expected}; for no more attention: {OPEN}"
        write(study, dict(zip(("recurrence, 37.5 %", "recurrence, 12.5 %"), losses, strict=True)))
        assert verdict(report(*place), title) == f"for as many tokens: {OPEN}; for no more attention: {expected}"


def test_all_keys_for_chosen_tokens_are_held_against_near_keys_for_all(write, tmp_path):
    title, study = "Ours: all keys for chosen tokens, or near keys for all tokens", STUDIES["alternatives"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for loss, expected in ((4.0, OPEN), (3.9, HOLDS), (4.1, FAILS)):
        write(study, {"every token that recurs": loss})
        assert verdict(report(*place), title) == expected
    write(study, {"sliding window, 15.9 %": 4.05}, attention={"sliding window, 15.9 %": 0.12})
    page = report(*place)
    assert "takes 12.0 % of full attention's FLOPs, those tokens 25.0 %; against all keys for all tokens of the" in page
    assert "layer it has +5.1 % [" in page
    assert ", against full attention +5.1 % [" in page


def test_the_dct_is_held_against_nothing_in_its_place(write, tmp_path):
    title, study = "Ours: the DCT against no operator", STUDIES["alternatives"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for loss, noise, expected in (
        (4.0, 0.02, OPEN),
        (4.0, 0.0, FAILS),
        (3.97, 0.0, HOLDS),
        (3.99, 0.0, WEAKER),
        (4.1, 0.02, FAILS),
    ):
        write(study, {"with the DCT, recurrence, 12.5 %": loss}, noise=noise)
        assert verdict(report(*place), title) == expected


def test_routed_keys_are_held_against_all_keys_at_the_same_tokens_on_both_texts(write, tmp_path):
    title, study = "Ours: only routed tokens as keys", STUDIES["half"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for loss, noise, expected in ((4.01, 0.003, HOLDS), (4.015, 0.003, OPEN), (4.03, 0.003, FAILS)):
        write(study, {"routed keys, benefit, 12.5 %": loss}, noise=noise)
        assert verdict(report(*place), title) == expected


def test_recall_holds_where_each_arm_is_within_two_points_with_every_seed(write, tmp_path):
    title, study = "Ours: recall with less of the attention", STUDIES["recall"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    good = {"full attention": 0.99, "whole layers, 50 %": 0.98, "whole layers, 25 %": 0.99}
    good |= {"every token that recurs": 0.99}
    said = "half of the layers: {}; one of six: {}; its tokens that recur: {}"
    write(study, accuracy=good, noise=0.002)
    page = report(*place)
    assert verdict(page, title) == said.format(HOLDS, HOLDS, HOLDS)
    assert "seeds of 6: whole layers, 50 % (6), whole layers, 25 % (6), every token that recurs (6). The" in page
    assert "`chiar`, by seed: 99.0, 98.8, 98.6, 98.4, 98.2, 98.0 %" in page
    for missing, expected in ((1, OPEN), (2, OPEN), (3, FAILS), (6, FAILS)):
        by_seed = [0.3] * missing + [0.99] * (6 - missing)
        write(study, accuracy=good | {"whole layers, 25 %": by_seed}, noise=0.002)
        assert verdict(report(*place), title) == said.format(HOLDS, expected, HOLDS)
    write(study, accuracy=dict.fromkeys(good, 0.25), noise=0.002)  # where the twin cannot do it either
    assert verdict(report(*place), title) == said.format(OPEN, OPEN, OPEN)


def test_a_dense_start_is_held_against_none(write, tmp_path):
    title, study = "Ours: a dense start", STUDIES["recall"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    without = "benefit, 12.5 %"
    for started, expected in ((0.98, HOLDS), (0.6, OPEN), (0.3, FAILS)):
        write(study, accuracy={f"dense start, {without}": started, without: 0.6}, noise=0.002)
        page = report(*place)
        assert verdict(page, title) == expected
    assert "By seed: 30.0, 29.8, 29.6, 29.4, 29.2, 29.0 %; without a dense start 60.0, 59.8" in page


def test_mixed_training_costs_little_where_the_interval_ends_below_five_per_cent(write, tmp_path):
    place = ([STUDIES["mixed"]], tmp_path / "results", tmp_path / "results.md")
    for loss, expected in ((4.0, HOLDS), (4.045, OPEN), (4.1, FAILS), (3.5, HOLDS)):
        write(STUDIES["mixed"], {"v2, causal MetaRouter, mixed": loss})
        assert verdict(report(*place), "Mixed training") == expected
