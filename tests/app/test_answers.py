"""What the page answers, without the page."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from matplotlib.figure import Figure

from chiaroscuro import ChiarForSequenceClassification
from chiaroscuro.app import Shelf, answers, last_runs
from chiaroscuro.app.answers import AS_ROUTED, MOST_CHARACTERS, MOST_TOKENS, NOBODY, Change
from chiaroscuro.data import encode_text
from chiaroscuro.training import task_of

TEXT = "A class is a mapping of names to values, and so is a module."


@pytest.fixture
def shelf(runs):
    return Shelf(runs)


def test_a_text_is_read_by_each_run(shelf, runs):
    routed, full = (answers.read(shelf, str(run), TEXT, "operator", Change()) for run in runs)
    assert (routed.count("<h3>"), full.count("<h3>")) == (5, 4)
    assert "none 100%" in routed
    assert "none 100%" not in full
    assert answers.read(shelf, NOBODY, TEXT, "operator", Change()) == ""
    assert answers.read(shelf, str(runs[0]), "", "operator", Change()) == ""


def test_a_change_tells_what_it_changed(shelf, runs):
    told = answers.read(shelf, str(runs[0]), TEXT, "operator", Change(share=100.0))
    assert "attention 100%" in told
    assert "tokens sent elsewhere" in told
    assert "divergence" in told
    forced = answers.read(shelf, str(runs[0]), TEXT, "operator", Change(layer=4, token=3, operator="attention"))
    assert "after token 3; divergence" in forced
    for change, wrong in (
        (Change(layer=1, operator="attention"), "layer 1 sends tokens to none"),
        (Change(layer=4, token=999, operator="none"), "there is no token 999"),
        (Change(share=50.0, token=999), "there is no token 999"),
        (Change(layer=None, operator="attention"), "which layer?"),
    ):
        assert wrong in answers.read(shelf, str(runs[0]), TEXT, "operator", change)
    assert Change(operator=AS_ROUTED).nothing


def test_a_long_text_is_cut_with_a_notice_before_much_is_made_of_it(shelf, runs, monkeypatch):
    encoded = []

    def encode(tokenizer, text, **options):
        encoded.append(len(text))
        return encode_text(tokenizer, text, **options)

    monkeypatch.setattr(answers, "encode_text", encode)
    for long in ("word " * 40_000, "🙂" * MOST_CHARACTERS, "x" * (MOST_CHARACTERS + 1)):
        encoded.clear()
        told = answers.read(shelf, str(runs[0]), long, "operator", Change())
        assert "Cut after" in told
        assert f"reads {MOST_TOKENS} tokens at most" in told
        assert told.count("<bdi style") <= 5 * MOST_TOKENS
        assert encoded[0] == MOST_CHARACTERS
        assert len(encoded) < 8
    html = answers.write(shelf, str(runs[0]), "word " * 40_000, 2, 0.0)
    assert "Cut after" in next(html)[0]


@pytest.mark.parametrize(("tokens", "read"), [(1, 31), (8, 24), (300, 16)])
def test_a_prompt_is_cut_to_leave_room_for_what_is_written(shelf, runs, tokens, read):
    run = shelf.take(str(runs[0]))
    run.model.config.max_position_embeddings = 32
    steps = [html for html, _ in answers.write(shelf, str(runs[0]), TEXT * 5, tokens, 0.0)]
    assert "Cut after" in steps[0]
    assert f"reads {read} tokens at most" in steps[0]
    assert steps[0].count("<li>") == 5 * read
    assert len(steps) == 32 - read


def test_a_run_that_is_broken_or_not_given_is_a_message(shelf, runs, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(runs[0], broken)
    (broken / "model.safetensors").write_bytes(b"no weights <b>")
    shelf = Shelf([broken, tmp_path / "missing"])
    for name, told in (
        (str(broken), "is damaged"),
        (str(tmp_path / "missing"), "no run folder"),
        ("/etc", "is not one of"),
    ):
        assert told in answers.read(shelf, name, TEXT, "operator", Change())
        assert told in next(answers.write(shelf, name, TEXT, 3, 0.0))[0]
        with pytest.raises(ValueError, match=told):
            answers.training(shelf, name)
        with pytest.raises(ValueError, match=told):
            answers.curve(shelf, name, TEXT)


def test_the_curve_rises_in_compute_with_the_share(shelf, runs):
    figure = answers.curve(shelf, str(runs[0]), TEXT)
    spent, perplexity = figure.axes[0].lines[0].get_data()
    assert list(spent) == sorted(spent)
    assert len(set(spent)) == len(spent) == len(perplexity)
    with pytest.raises(ValueError, match="no layer of this model decides by thresholds"):
        answers.curve(shelf, str(runs[1]), TEXT)


def test_writing_ends_with_the_text_and_its_speed(shelf, runs):
    steps = list(answers.write(shelf, str(runs[0]), TEXT, 5, 0.0))
    assert len(steps) == 5
    assert "tokens per second" in steps[-1][1]
    assert "something to go on from" in next(answers.write(shelf, str(runs[0]), "", 5, 0.0))[0]


def test_visitors_who_change_the_routing_at_the_same_time_get_their_own(shelf, runs):
    changes = [Change(share=share) for share in (0, 25, 50, 75, 100)] + [Change(None, 3, 0, "attention"), Change()]

    def ask(change):
        return answers.read(shelf, str(runs[0]), TEXT, "operator", change)

    alone = [ask(change) for change in changes]
    assert len(set(alone)) == len(changes)
    with ThreadPoolExecutor(len(changes)) as visitors:
        assert list(visitors.map(ask, changes * 3)) == alone * 3


def test_who_waits_for_too_long_is_told(runs):
    shelf = Shelf(runs, patience=0.05)
    with shelf.alone():
        assert "no answer within 0.05 seconds" in answers.read(shelf, str(runs[0]), TEXT, "operator", Change())
        with pytest.raises(TimeoutError):
            answers.curve(shelf, str(runs[0]), TEXT)
    assert "layer 1" in answers.read(shelf, str(runs[0]), TEXT, "operator", Change())


def test_what_is_written_does_not_hear_of_what_is_read(shelf, runs):
    def text(steps):
        return [html for html, _ in steps][-1]

    alone = text(answers.write(shelf.again(), str(runs[0]), TEXT, 20, 0.0))
    written = answers.write(shelf.again(), str(runs[0]), TEXT, 20, 0.0)
    between = []
    for step in written:
        answers.read(shelf, str(runs[0]), TEXT, "operator", Change(share=100))
        between.append(step)
    assert text(between) == alone


def test_the_figures_of_training(shelf, runs):
    routed, full = (answers.training(shelf, str(run)) for run in runs)
    assert list(routed) == ["loss", "shares", "utilisation", "entropies"]
    assert list(full) == ["loss"]
    assert all(isinstance(figure, Figure) for figure in routed.values())


def test_who_reads_does_not_wait_for_the_data_of_a_run(runs, monkeypatch):
    shelf = Shelf(runs, patience=0.05)

    def read_meanwhile(run):
        html.append(answers.read(shelf, str(runs[0]), TEXT, "operator", Change()))
        return task_of(run)

    html = []
    monkeypatch.setattr("chiaroscuro.analysis.run_figures.task_of", read_meanwhile)
    assert "entropies" in answers.training(shelf, str(runs[0]))
    assert "layer 1" in html[0]


def test_the_figures_of_training_wait_for_who_reads(runs, monkeypatch):
    shelf = Shelf(runs, patience=0.05)
    entered = []

    def ask(*_):
        with pytest.raises(TimeoutError), shelf.alone():
            pass
        entered.append(True)

    monkeypatch.setattr("chiaroscuro.analysis.run_figures.entropy_figure", ask)
    answers.training(shelf, str(runs[0]))
    assert entered


def test_collapse_is_marked(runs, tmp_path):
    from chiaroscuro.analysis import training_figures

    lines = (runs[0] / "metrics.jsonl").read_text().splitlines()
    logs = [json.loads(line) for line in lines if "routing" in json.loads(line)]
    for log in logs:  # and a layer that is well
        log["routing"]["4"], log["utilisation_entropy"]["4"] = {"none": 0.4, "attention": 0.6}, 0.67
    logs[-1]["routing"]["3"] = {"none": 0.999, "attention": 0.001}
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, logs)))
    labels = [line.get_label() for line in training_figures(tmp_path)["utilisation"].axes[0].lines]
    assert labels == ["layer 4", "layer 4: collapsed, an operator starves", "layer 5"]
    (tmp_path / "metrics.jsonl").write_text("[1]")
    with pytest.raises(ValueError, match="is damaged|holds no logs"):
        training_figures(tmp_path)


def test_a_classifier_does_not_write(shelf, runs, monkeypatch):
    run = shelf.take(str(runs[0]))
    object.__setattr__(run, "model", ChiarForSequenceClassification(run.model.config).eval())
    assert "which does not write" in next(answers.write(shelf, str(runs[0]), TEXT, 3, 0.0))[0]
    assert "<h3>" in answers.read(shelf, str(runs[0]), TEXT, "loss", Change(share=50.0))
    with pytest.raises(ValueError, match="needs a language model"):
        answers.curve(shelf, str(runs[0]), TEXT)


def test_the_last_run_is_found_with_the_one_it_was_compared_with(runs, tmp_path):
    assert set(last_runs(runs[0].parent.parent)) == set(runs)
    assert last_runs(tmp_path) == []


def test_only_run_folders_are_found_and_the_last_of_a_study_alone(runs, tmp_path):
    arms = [tmp_path / "runs" / "study" / f"arm{number}" for number in range(3)]
    for seconds, arm in enumerate(arms):
        arm.mkdir(parents=True)
        for name in ("config.json", "results.json"):
            shutil.copy(runs[0] / name, arm)
        os.utime(arm / "results.json", (seconds, seconds))
    (tmp_path / "runs" / "no-model").mkdir()
    (tmp_path / "runs" / "no-model" / "results.json").write_text("{}")
    assert last_runs(tmp_path / "runs") == [arms[-1]]
