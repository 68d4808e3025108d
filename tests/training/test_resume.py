"""Run folders from the first file on: what goes on and from where, what begins anew, and what is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.helpers import logs

from chiaroscuro.training import load_run, prepare, train
from chiaroscuro.training.folder import alone_in

pytestmark = pytest.mark.usefixtures("cache")


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(plan, tmp_path):
    plan = replace(plan, save_every=4)
    task = prepare(plan)
    train(plan, task, tmp_path / "whole")
    train(plan, task, tmp_path / "stopped")
    # As after a kill in step 5: the first checkpoint is the last, and nothing of the end was written.
    (last,) = (tmp_path / "stopped" / "checkpoints").glob("checkpoint-8")
    last.rename(tmp_path / "elsewhere")
    for name in ("model.safetensors", "results.json", "metrics.jsonl"):
        (tmp_path / "stopped" / name).unlink()
    train(plan, task, tmp_path / "stopped", resume=True)
    assert logs(tmp_path / "stopped") == logs(tmp_path / "whole")[4:]
    states = [load_run(tmp_path / name).model.state_dict() for name in ("whole", "stopped")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_run_stopped_between_its_last_step_and_its_results_takes_no_step_more(plan, tmp_path):
    plan = replace(plan, save_every=4)
    task = prepare(plan)
    train(plan, task, tmp_path / "run")
    whole = load_run(tmp_path / "run")
    for name in ("model.safetensors", "results.json"):
        (tmp_path / "run" / name).unlink()
    results = train(plan, task, tmp_path / "run", resume=True)
    same = ("perplexity", "routing", "train_seconds", "tokens_per_second")
    assert [results[name] for name in same] == [whole.results[name] for name in same]
    assert len(logs(tmp_path / "run")) == 8
    again = load_run(tmp_path / "run").model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.model.state_dict().items())


def test_a_run_is_not_resumed_by_another_plan(plan, tmp_path):
    plan = replace(plan, save_every=4)
    task = prepare(plan)
    train(plan, task, tmp_path / "run")
    results = (tmp_path / "run" / "results.json").read_text()
    with pytest.raises(ValueError, match="another plan: seed was 0 and is 9, learning_rate was 0.002 and is 0.5"):
        train(replace(plan, seed=9, learning_rate=0.5), task, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "results.json").read_text() == results


def test_a_run_is_not_resumed_on_other_data(plan, english, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(english.read_text())
    plan, out = replace(plan, data=str(text), save_every=4), tmp_path / "run"
    whole = train(plan, prepare(plan), out)
    (out / "results.json").unlink()
    text.write_text(english.read_text() * 2)
    with pytest.raises(ValueError, match="the data of the run in .*run have changed since it was begun"):
        train(plan, prepare(plan), out, resume=True)
    text.write_text(english.read_text())
    assert train(plan, prepare(plan), out, resume=True)["loss"] == whole["loss"]


def test_who_goes_on_without_a_checkpoint_is_told_that_it_begins_anew(plan, tmp_path):
    task, out = prepare(plan), tmp_path / "run"
    whole = train(plan, task, out)
    (out / "results.json").unlink()
    with pytest.warns(UserWarning, match="there is no checkpoint in .*run: its training begins anew"):
        assert train(plan, task, out, resume=True)["loss"] == whole["loss"]


def test_a_run_that_failed_at_its_start_does_not_block_its_folder(plan, tmp_path):
    out = tmp_path / "run"
    diverging = replace(plan, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"training diverged at step \d+ with a learning rate of up to 1e\+30"):
        train(diverging, prepare(diverging), out)
    assert (out / "plan.json").exists()
    assert train(plan, prepare(plan), out)["recipe"] == plan.recipe


@pytest.mark.parametrize("left", [["plan.tmp"], ["plan.json", "data.tmp"], ["plan.json", "data.json", "metrics.tmp"]])
def test_a_run_that_was_killed_while_its_first_files_were_written_does_not_block_its_folder(plan, tmp_path, left):
    out = tmp_path / "run"
    out.mkdir()
    for name in left:
        (out / name).touch()
    train(plan, prepare(plan), out)
    assert not list(out.glob("*.tmp"))
    for name in (*left, "more.txt"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="exists already"):
        train(plan, prepare(plan), tmp_path)


def test_a_run_that_was_killed_before_its_data_were_written_down_goes_on_with_them(plan, tmp_path):
    task, out = prepare(replace(plan, steps=1)), tmp_path / "run"
    train(task.plan, task, out)
    before = (out / "data.json").read_text()
    for name in ("data.json", "results.json"):
        (out / name).unlink()
    with pytest.warns(UserWarning, match="its training begins anew"):
        train(task.plan, task, out, resume=True)
    assert (out / "data.json").read_text() == before


def test_no_run_is_overwritten_and_nothing_is_resumed_from_nothing(plan, tmp_path):
    task = prepare(plan)
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(ValueError, match="exists already"):
        train(plan, task, tmp_path)
    with pytest.raises(ValueError, match="nothing to resume"):
        train(plan, task, tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_finished_run_is_not_trained_again(plan, tmp_path):
    task = prepare(plan)
    results = train(plan, task, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert train(plan, task, tmp_path / "run", resume=True) == results
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_without_its_weights_gets_them_back(plan, tmp_path):
    plan = replace(plan, save_every=4)
    task = prepare(plan)
    results = train(plan, task, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    again = train(plan, task, tmp_path / "run", resume=True)
    assert (again["loss"], again["tokens_seen"]) == (results["loss"], results["tokens_seen"])
    assert (tmp_path / "run" / "model.safetensors").exists()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "model.safetensors").unlink()
    assert train(plan, task, tmp_path / "run", resume=True) == again  # of which nothing else is left


def test_two_processes_do_not_train_in_one_folder(plan, tmp_path, monkeypatch):
    task = prepare(plan)
    run, by_another_name = tmp_path / "run", tmp_path / "link"
    run.mkdir()
    by_another_name.symlink_to(run)
    with alone_in(run):
        for name in (run, by_another_name, tmp_path / "sub" / ".." / "run"):
            with pytest.raises(ValueError, match="another process is at work in .*: wait"):
                train(plan, task, name)
    monkeypatch.chdir(run)
    train(plan, task, Path("."))
    with alone_in(run), pytest.raises(ValueError, match="another process is at work in .*run: wait"):
        train(plan, task, run, resume=True)
    assert [path.name for path in tmp_path.iterdir() if "lock" in path.name] == []


def test_what_goes_on_from_nothing_makes_nothing(plan, tmp_path):
    with pytest.raises(ValueError, match="nothing to resume in"):
        train(plan, prepare(plan), tmp_path / "no" / "such", resume=True)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"fields": {"max_position_embeddings": 16}}, "longer than the 16"),
        ({"fields": {"hidden_size": 30, "num_attention_heads": 4}}, "does not divide into 4"),
        ({"seq_len": 5_000}, "fewer than one window of 5000"),
    ],
)
def test_a_plan_that_cannot_work_leaves_no_folder(plan, tmp_path, change, complaint):
    plan = replace(plan, **change | {"fields": plan.fields | change.get("fields", {})})
    with pytest.raises(ValueError, match=complaint):
        train(plan, prepare(plan), tmp_path / "run")
    assert not (tmp_path / "run").exists()
