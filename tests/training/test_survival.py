"""Runs that are killed, stopped, damaged on disk or run out of it: what is there stays, and they go on as if nothing
had been."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.helpers import PROCESSES, logs
from transformers import TrainerCallback

from chiaroscuro import cli
from chiaroscuro.modeling import read_json
from chiaroscuro.training import NotSaved, Stopped, Task, TrainingPlan, compare, load_run, prepare, train
from chiaroscuro.training.checkpoints import SUMS
from chiaroscuro.training.stop import StopAtSignal

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def plan(english) -> TrainingPlan:
    """With dropout, so that the state of the random numbers matters, and routing that moves."""
    return TrainingPlan(
        data=str(english),
        vocab_size=300,
        steps=40,
        batch_size=4,
        seq_len=33,
        warmup_steps=4,
        eval_tokens=1_000,
        save_every=2,
        fields={"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "dropout": 0.2},
    )


def run(plan: TrainingPlan, out: Path, resume: bool = False, largest_file: int | None = None) -> None:
    """The whole of a process. `largest_file`: bytes after which a file is refused more."""
    torch.set_num_threads(1)
    task = prepare(plan)
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    train(plan, task, out, resume)


def start(*arguments):
    process = PROCESSES.Process(target=run, args=arguments)
    process.start()
    return process


def assert_same(run: Path, whole: Path) -> None:
    assert logs(run) == logs(whole)
    state, expected = (load_run(folder).model.state_dict() for folder in (run, whole))
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_killed_ten_times_a_run_is_the_run_that_was_never_killed(plan, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    PROCESSES.Process(target=int).start()  # so that what all of them import is there
    time.sleep(0.1)
    before = time.perf_counter()
    process = start(plan, whole)
    process.join()
    assert process.exitcode == 0
    seconds = time.perf_counter() - before
    chance, kills = random.Random(0), 0
    while kills < 10:
        process = start(plan, killed, (killed / "plan.json").exists())
        process.join(chance.uniform(0.0, 0.3 * seconds))
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        process.kill()
        process.join()
        kills += 1
    assert kills > 2
    process = start(plan, killed, True)
    process.join()
    assert process.exitcode == 0
    assert_same(killed, whole)
    assert not (killed / "checkpoints" / "drafts").exists()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("model.safetensors", truncate),
        ("optimizer.pt", flip_a_bit),
        ("rng_state.pth", Path.unlink),
        ("trainer_state.json", truncate),
        (SUMS, truncate),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(plan, tmp_path, name, harm):
    plan = replace(plan, steps=8, save_every=4)
    task = prepare(plan)
    train(plan, task, tmp_path / "whole")
    train(plan, task, tmp_path / "run")
    for left in ("model.safetensors", "results.json"):
        (tmp_path / "run" / left).unlink()
    harm(tmp_path / "run" / "checkpoints" / "checkpoint-8" / name)
    with pytest.warns(UserWarning, match=rf"checkpoint-8 is damaged: .*{name}"):
        train(plan, task, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_when_every_checkpoint_is_damaged_the_run_starts_again_and_says_why(plan, tmp_path):
    plan = replace(plan, steps=4)
    task = prepare(plan)
    train(plan, task, tmp_path / "whole")
    train(plan, task, tmp_path / "run")
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        truncate(checkpoint / "model.safetensors")
    (tmp_path / "run" / "results.json").unlink()
    with pytest.warns(UserWarning, match="damaged") as warned:
        train(plan, task, tmp_path / "run", resume=True)
    assert len([each for each in warned if "is damaged" in str(each.message)]) == 2
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_checkpoint_that_is_written_outlives_damaged_ones_of_later_steps(plan, tmp_path, monkeypatch):
    plan = replace(plan, steps=8)
    task = prepare(plan)
    train(plan, task, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    for checkpoint in checkpoints.iterdir():
        truncate(checkpoint / "model.safetensors")
    (tmp_path / "run" / "results.json").unlink()
    add_callback(monkeypatch, task, SignalAt(3, signal.SIGTERM))
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(Stopped, match="after step 3 of 8, which is saved"):
        train(plan, task, tmp_path / "run", resume=True)
    assert {path.name for path in checkpoints.iterdir()} == {"checkpoint-2", "checkpoint-3"}


def test_a_full_disk_leaves_the_last_good_checkpoint(plan, tmp_path):
    plan = replace(plan, steps=8, save_every=4)
    train(plan, prepare(plan), tmp_path / "whole")
    train(replace(plan, steps=8), prepare(plan), tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    for left in (tmp_path / "run" / "model.safetensors", tmp_path / "run" / "results.json"):
        left.unlink()
    truncate(checkpoints / "checkpoint-8" / "optimizer.pt")  # so that it is to be written again
    process = start(plan, tmp_path / "run", True, 20_000)
    process.join()
    assert process.exitcode == 1
    assert not (checkpoints / "drafts").exists()
    with pytest.warns(UserWarning, match="checkpoint-8 is damaged"):
        train(plan, prepare(plan), tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


def add_callback(monkeypatch: pytest.MonkeyPatch, task: Task, callback: TrainerCallback) -> None:
    trainer = task.trainer
    monkeypatch.setattr(task, "trainer", lambda callbacks, **given: trainer(callbacks=[*callbacks, callback], **given))


class FullFrom(TrainerCallback):
    """From a step on there is no space for what torch saves."""

    def __init__(self, step: int, monkeypatch: pytest.MonkeyPatch):
        self.step, self.monkeypatch = step, monkeypatch

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.monkeypatch.setattr("torch.save", self.full)

    @staticmethod
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_could_not_be_saved_is_told_with_what_there_is(plan, tmp_path, monkeypatch):
    plan = replace(plan, steps=8, save_every=4)
    task = prepare(plan)
    add_callback(monkeypatch, task, FullFrom(8, monkeypatch))
    with pytest.raises(NotSaved, match=r"step 8 not saved \(.*No space left.*\): the last one is .*checkpoint-4"):
        train(plan, task, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-4"]


class SignalAt(TrainerCallback):
    """A signal comes in the middle of a step."""

    def __init__(self, step: int, number: signal.Signals):
        self.step, self.number = step, number

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            signal.raise_signal(self.number)


@pytest.fixture
def heeded():
    """Ctrl-C is ignored in the background, where these tests may run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_finishes_its_step_saves_it_and_goes_on(plan, tmp_path, monkeypatch, number, code):
    plan = replace(plan, steps=8, save_every=None)
    task = prepare(plan)
    train(plan, task, tmp_path / "whole")
    with monkeypatch.context() as patch:
        add_callback(patch, task, SignalAt(5, number))
        with pytest.raises(Stopped, match=rf"stopped by {number.name} after step 5 of 8, which is saved") as stopped:
            train(plan, task, tmp_path / "run")
    assert stopped.value.exit_code == code
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-5"]
    train(plan, task, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_stopped_command_says_how_to_go_on_and_that_does(english, tmp_path, monkeypatch):
    out = tmp_path / "run"
    options = "--steps 60 --batch-size 4 --seq-len 33 --vocab-size 300 --hidden-size 32 --layers 3 --heads 2"
    command = [sys.executable, "-m", "chiaroscuro", "train", "--data", str(english), "--out", str(out)]
    process = subprocess.Popen([*command, *options.split()], stderr=subprocess.PIPE, text=True)
    while not (out / "metrics.jsonl").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    go_on = error.strip().rpartition("to go on: ")[2]
    assert go_on == f"chiaroscuro train --out {out} --resume"
    monkeypatch.setattr(sys, "argv", go_on.split())
    with pytest.raises(SystemExit, match="^0$"):
        cli.app()
    assert read_json(out / "results.json")["steps"] == 60


@pytest.mark.parametrize("recipe", ["chiar", "full_attention"])
def test_a_stopped_comparison_goes_on_where_it_was(plan, tmp_path, monkeypatch, recipe):
    """In either of its two runs."""
    plan = replace(plan, steps=8, save_every=None)
    expected = compare(plan, "full_attention", tmp_path / "whole")
    stop, of_task = SignalAt(5, signal.SIGTERM), Task.trainer

    def trainer(task, **arguments):
        callbacks = [stop] if recipe in arguments["args"].output_dir else []
        return of_task(task, **arguments | {"callbacks": [*arguments["callbacks"], *callbacks]})

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(Task, "trainer", trainer)
        with pytest.raises(Stopped, match=f"the same command with --out {out} --resume") as stopped:
            compare(plan, "full_attention", out)
    assert stopped.value.exit_code == 143
    with pytest.raises(ValueError, match="the run was started by another plan: seed was 0 and is 1"):
        compare(replace(plan, seed=1), "full_attention", out, resume=True)
    found = compare(plan, "full_attention", out, resume=True)
    assert found == read_json(out / "comparison.json")
    assert found["by_chance"] == expected["by_chance"]
    for name, results in expected["runs"].items():
        assert found["runs"][name]["loss"] == results["loss"]
        assert_same(out / name, tmp_path / "whole" / name)


@pytest.mark.usefixtures("heeded")
def test_a_second_signal_is_not_held_back():
    stop = StopAtSignal()
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        assert stop.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = StopAtSignal()
        with stop.listening():
            signal.raise_signal(signal.SIGINT)
        assert stop.name is None
    finally:
        signal.signal(signal.SIGINT, before)
