"""A dense start: who attends at which step, also where a run goes on, and what it costs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.helpers import ids, tiny_model

from chiaroscuro.flops import flops_ratios
from chiaroscuro.routing import BudgetRouter, calibrate
from chiaroscuro.training import DenseStart, TrainingPlan, load_run, prepare, train
from chiaroscuro.training.dense_start import training_ratio

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def plan(english) -> TrainingPlan:
    return TrainingPlan(
        data=str(english),
        vocab_size=300,
        steps=12,
        batch_size=4,
        seq_len=65,
        warmup_steps=2,
        calibrate_every=2,
        dense_steps=8,
        fields={"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2, "routed_share": 0.25},
    )


def logs(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: line[name] for name in line if name != "seconds"} for line in lines if "loss" in line]


def test_the_share_falls_evenly_from_all_tokens_to_the_routers_own():
    model = tiny_model("chiar", routed_share=0.2)
    start = DenseStart(model, steps=10, every=2)
    for step, share in ((0, 1.0), (1, 1.0), (2, 0.84), (3, 0.84), (8, 0.36), (9, 0.36), (10, 0.2), (1000, 0.2)):
        start.set(start.part(step))
        assert [router.share for router in start.own] == pytest.approx([share] * 2)
    start.set(0.0)
    assert [router.share for router in start.own] == [0.2, 0.2]


@pytest.mark.parametrize("router", ["learned", "threshold", "hash", "random", "interleaved"])
def test_all_attend_at_first_and_in_the_end_as_many_as_without(plan, tmp_path, router):
    plan = replace(plan, fields=plan.fields | {"router": router})
    results = train(plan, prepare(plan), tmp_path / "run")
    by_step = [[shares["attention"] for shares in line["routing"].values()] for line in logs(tmp_path / "run")]
    expected = [1.0, 1.0, 0.8125, 0.8125, 0.625, 0.625, 0.4375, 0.4375, 0.25, 0.25, 0.25, 0.25]
    # A hash parts what words there are, of which some are common; the others the tokens themselves.
    assert torch.tensor(by_step).mean(1).tolist() == pytest.approx(expected, abs=0.25 if router == "hash" else 0.12)
    assert min(by_step[0]) > 0.98
    assert results["flops"]["attention_ratio"] < 0.2
    assert load_run(tmp_path / "run").model.config.routed_share == 0.25


@pytest.mark.parametrize("router", ["benefit", "random"])
def test_a_run_that_goes_on_has_the_shares_of_one_that_did_not_stop(plan, tmp_path, router):
    plan = replace(plan, save_every=5, fields=plan.fields | {"router": router})  # between two calibrations
    task = prepare(plan)
    train(plan, task, tmp_path / "whole")
    stopped = shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for path in (*stopped.glob("checkpoints/checkpoint-1*"), stopped / "model.safetensors", stopped / "results.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(plan, task, stopped, resume=True)
    assert logs(stopped) == logs(tmp_path / "whole")
    states = [load_run(folder).model.state_dict() for folder in (tmp_path / "whole", stopped)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("keys", ["all", "routed"])
def test_what_training_cost_is_the_mean_over_its_steps(keys):
    model, input_ids, held_out = tiny_model("chiar", attention_keys=keys), ids(8, 128), ids(8, 128, seed=1)
    calibrate(model, held_out)
    thresholds = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.endswith("thresholds")}
    start, each = DenseStart(model, steps=8, every=1), []
    for step in range(16):
        start.set(start.part(step))
        calibrate(model, held_out)
        torch.manual_seed(step)
        each.append(flops_ratios(model, input_ids)["training_ratio"])
    assert each[0] > each[-1] + 0.02
    found = training_ratio(model, start, 16, input_ids, held_out)
    assert found == pytest.approx(sum(each) / 16, abs=0.02 * (each[0] - each[-1]))
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in thresholds.items())
    assert [router.share for router in model.modules() if isinstance(router, BudgetRouter)] == [0.5, 0.5]


def test_a_dense_start_is_told_as_what_training_cost(plan, tmp_path):
    dense = train(plan, prepare(plan), tmp_path / "dense")
    without = replace(plan, dense_steps=0)
    sparse = train(without, prepare(without), tmp_path / "sparse")
    extra = dense["flops"]["training_ratio"] - sparse["flops"]["training_ratio"]
    assert extra > 0.02
    assert dense["flops"]["executed_ratio"] == pytest.approx(sparse["flops"]["executed_ratio"], abs=0.2 * extra)


def test_what_has_no_share_to_lower_is_refused(plan, tmp_path):
    plan = replace(plan, recipe="full_attention", fields={**plan.fields, "routed_share": None})
    with pytest.raises(ValueError, match="is for routers that keep to a share of two operators"):
        train(plan, prepare(plan), tmp_path / "run")
    for steps in (-1, 13):
        with pytest.raises(ValueError, match=rf"dense_steps must lie in \[0, 12\].*got {steps}"):
            replace(plan, dense_steps=steps)
