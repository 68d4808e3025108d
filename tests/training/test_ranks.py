"""Several processes that train one model, as torchrun starts them, with gloo on one machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.helpers import EXPLORING, PROCESSES, free_port, ids, logs, tiny_config

from chiaroscuro import ChiarForCausalLM, cli
from chiaroscuro.modeling import read_json
from chiaroscuro.routing import follow, threshold_routers
from chiaroscuro.training import TrainingPlan, load_run, prepare, train

pytestmark = pytest.mark.usefixtures("cache")

OPTIONS = "--steps 8 --batch-size 4 --seq-len 33 --vocab-size 300 --save-every 4 "
OPTIONS += "--hidden-size 32 --layers 5 --heads 2"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "chiaroscuro"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def arguments(english: Path, out: Path, recipe: str = "spectral") -> list[str]:
    """A recipe that draws nothing in training, or two processes would draw otherwise than one."""
    return ["train", "--recipe", recipe, "--data", str(english), "--out", str(out), *OPTIONS.split()]


def rank(number: int, port: int, told: list[str], log: Path) -> None:
    """What torchrun makes of a command, but for its importing, which takes longer than these runs."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    sys.argv = ["chiaroscuro", *told]
    with log.open("w") as sys.stderr:
        cli.main()


def side_by_side(told: list[str], folder: Path) -> list[tuple[int | None, str]]:
    """Exit code and standard error of each of two processes that train one model."""
    port, logs = free_port(), [folder / f"rank{number}.log" for number in range(2)]
    processes = [PROCESSES.Process(target=rank, args=(number, port, told, log)) for number, log in enumerate(logs)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [(process.exitcode, log.read_text()) for process, log in zip(processes, logs, strict=True)]


def curve(folder: Path) -> list[float]:
    return [line["loss"] for line in logs(folder)]


def last(folder: Path, name: str) -> dict:
    return logs(folder)[-1][name]


@pytest.fixture(scope="module")
def two(english, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ranks") / "two"
    told = [*TORCHRUN, *arguments(english, out)]
    subprocess.run(told, check=True, capture_output=True, timeout=120, env=ENVIRONMENT)
    return out


@pytest.fixture
def one(two, tmp_path) -> Path:
    plan = TrainingPlan(**read_json(two / "plan.json"))
    train(plan, prepare(plan), tmp_path / "one")
    return tmp_path / "one"


def test_two_processes_train_the_model_that_one_does(one, two):
    assert curve(two) == pytest.approx(curve(one), abs=1e-5)
    assert last(two, "thresholds")["1"] == pytest.approx(last(one, "thresholds")["1"], abs=1e-5)
    assert last(two, "routing")["1"] == pytest.approx(last(one, "routing")["1"], abs=0.02)
    results, expected = (read_json(folder / "results.json") for folder in (two, one))
    assert results["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-4)
    assert results["tokens_seen"] == expected["tokens_seen"]
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    assert load_run(two).model.num_parameters() == expected["parameters"]


def test_two_processes_train_a_model_that_explores(english, tmp_path):
    """Each draws for its own tokens, so that one process trains another model, but as good a one."""
    told = [*arguments(english, tmp_path / "two", "chiar"), "--field", "router=benefit"]
    assert [code for code, _ in side_by_side(told, tmp_path)] == [0, 0]
    plan = TrainingPlan(**read_json(tmp_path / "two" / "plan.json"))
    train(plan, prepare(plan), tmp_path / "one")
    two, one = (curve(tmp_path / name) for name in ("two", "one"))
    assert two[0] == pytest.approx(one[0], abs=0.01)
    assert two[-1] == pytest.approx(one[-1], abs=0.05)
    assert two[-1] < two[0]
    assert 0.25 < last(tmp_path / "two", "routing")["3"]["attention"] < 0.75


def test_a_folder_that_is_taken_stops_all_of_them(english, two, tmp_path):
    for code, error in side_by_side(arguments(english, two), tmp_path):
        assert code == 2
        assert "exists already: choose another --out" in error


def test_when_one_dies_the_other_says_so_and_the_run_goes_on_with_one(english, tmp_path):
    out, whole = tmp_path / "killed", tmp_path / "whole"
    longer = ["--steps", "24", "--save-every", "1"]  # of an option given twice the latter counts
    many = [*TORCHRUN, *arguments(english, out), *longer]
    process = subprocess.Popen(many, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    while not (out / "checkpoints" / "checkpoint-3").exists():
        time.sleep(0.01)
        assert process.poll() is None
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(workers.split()[-1]), signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "SIGKILL" in error  # torchrun names the one that died
    assert "of 2 cannot go on" in error
    assert f"--out {out} --resume" in error
    assert not (out / "results.json").exists()
    plan = TrainingPlan(**read_json(out / "plan.json"))
    task = prepare(plan)
    train(plan, task, out, resume=True)
    train(plan, task, whole)
    assert curve(out) == pytest.approx(curve(whole), abs=1e-3)


def test_a_batch_that_does_not_divide_is_refused(english, monkeypatch, tmp_path):
    plan = TrainingPlan(data=str(english), vocab_size=300, batch_size=4, seq_len=33)
    monkeypatch.setattr("chiaroscuro.training.run.ranks", lambda: SimpleNamespace(num_processes=3))
    with pytest.raises(ValueError, match="4 windows per step do not divide among 3 processes"):
        train(plan, prepare(plan), tmp_path / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a machine without a GPU")
def test_sharding_without_a_gpu_is_refused(english, tmp_path):
    plan = TrainingPlan(data=str(english), vocab_size=300, batch_size=4, seq_len=33)
    with pytest.raises(ValueError, match="spread over GPUs only"):
        train(plan, prepare(plan), tmp_path / "run", sharded=True)


def shard(rank: int, port: int, expected: dict, folder: Path) -> None:
    """One of two processes that hold half of each weight."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = ChiarForCausalLM.from_pretrained(folder)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    rows = ids(4, 12)[2 * rank : 2 * rank + 2]
    loss = model(rows, labels=rows, use_cache=False).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        if expected[name] is None:  # a score that learns where tokens are explored
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad.full_tensor(), expected[name], atol=1e-6, rtol=1e-4, msg=name)
    assert next(model.parameters()).to_local().numel() < next(model.parameters()).numel()
    model.train()(ids(4, 12), use_cache=False)
    thresholds = [router.thresholds.clone() for router in threshold_routers(model)]
    follow(model)  # which asks for weights between two passes
    assert not any(map(torch.equal, thresholds, (router.thresholds for router in threshold_routers(model))))
    dist.destroy_process_group()


@pytest.mark.parametrize("recipe", ["chiar", "spectral", "v1_three_operator"])
def test_a_model_whose_weights_are_sharded_has_the_gradients_of_a_whole_one(recipe, tmp_path):
    # Where nothing is drawn, and with a router that learns.
    model = ChiarForCausalLM(tiny_config(recipe, **EXPLORING if recipe == "chiar" else {})).eval()
    model.save_pretrained(tmp_path)
    model(ids(4, 12), labels=ids(4, 12), use_cache=False).loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    port = free_port()
    torch.multiprocessing.start_processes(shard, (port, expected, tmp_path), nprocs=2, start_method="forkserver")
