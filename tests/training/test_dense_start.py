"""A dense start: who attends at which step, also where a run goes on, and what it costs."""

import shutil
from dataclasses import replace

import pytest
import torch
from tests.helpers import EXPLORING, ids, logs, tiny_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from chiaroscuro.flops import flops_ratios
from chiaroscuro.routing import BudgetRouter, calibrate
from chiaroscuro.training import DenseStart, ThresholdRefresh, TrainingPlan, compare, load_run, prepare, train
from chiaroscuro.training.dense_start import training_ratio

pytestmark = pytest.mark.usefixtures("cache")

FALLING = [1 - 0.75 * step / 8 for step in range(8)] + [0.25] * 4


@pytest.fixture
def plan(english) -> TrainingPlan:
    return TrainingPlan(
        data=str(english),
        vocab_size=300,
        steps=12,
        batch_size=4,
        seq_len=65,
        warmup_steps=2,
        eval_tokens=1_000,
        dense_steps=8,
        fields={"hidden_size": 32, "num_attention_heads": 2, "routed_share": 0.25} | EXPLORING,
    )


def budget_routers(model) -> list[BudgetRouter]:
    return [module for module in model.modules() if isinstance(module, BudgetRouter)]


def test_the_share_falls_evenly_from_all_tokens_to_the_routers_own():
    model = tiny_model("chiar", routed_share=0.2, **EXPLORING)
    start = DenseStart(model, steps=10)
    for step, share in ((0, 1.0), (3, 0.76), (5, 0.6), (9, 0.28), (10, 0.2), (1000, 0.2)):
        start.set(start.remaining(step))
        assert [router.shares[-1] for router in budget_routers(model)] == pytest.approx([share] * 2)


@pytest.mark.parametrize("router", ["benefit", "learned", "threshold", "hash", "random", "interleaved"])
def test_all_attend_at_first_and_in_the_end_as_many_as_without(plan, tmp_path, router):
    plan = replace(plan, fields=plan.fields | {"router": router})
    results = train(plan, prepare(plan), tmp_path / "run")
    by_step = [[shares["attention"] for shares in line["routing"].values()] for line in logs(tmp_path / "run")]
    explored = 1 / 8 if router == "benefit" else 0.0  # with a gate of a half on average
    expected = [share + explored * (0.5 - share) for share in FALLING]
    # A hash parts what words there are, of which some are common; the others the tokens themselves.
    assert torch.tensor(by_step).mean(1).tolist() == pytest.approx(expected, abs=0.25 if router == "hash" else 0.12)
    assert min(by_step[0]) > expected[0] - 0.03
    assert results["flops"]["attention_ratio"] < 0.2
    assert load_run(tmp_path / "run").model.config.routed_share == 0.25


def test_tokens_of_other_tasks_attend_at_first_too(tmp_path):
    plan = TrainingPlan(
        task="recall",
        data="recall",
        vocab_size=32,
        steps=6,
        batch_size=4,
        seq_len=16,
        warmup_steps=1,
        dense_steps=4,
        fields={"hidden_size": 16, "num_attention_heads": 1} | EXPLORING | {"router": "learned"},
    )
    train(plan, prepare(plan), tmp_path / "run")
    by_step = [[shares["attention"] for shares in line["routing"].values()] for line in logs(tmp_path / "run")]
    assert torch.tensor(by_step).mean(1).tolist() == pytest.approx([1.0, 0.875, 0.75, 0.625, 0.5, 0.5], abs=0.1)


@pytest.mark.parametrize("router", ["benefit", "random"])
def test_a_run_that_goes_on_has_the_shares_of_one_that_did_not_stop(plan, tmp_path, router):
    plan = replace(plan, save_every=7, fields=plan.fields | {"router": router})  # before its dense start is over
    task = prepare(plan)
    train(plan, task, tmp_path / "whole")
    stopped = shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for path in (*stopped.glob("checkpoints/checkpoint-1*"), stopped / "model.safetensors", stopped / "results.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert [path.name for path in stopped.glob("checkpoints/*")] == ["checkpoint-7"]
    train(plan, task, stopped, resume=True)
    assert logs(stopped) == logs(tmp_path / "whole")
    states = [load_run(folder).model.state_dict() for folder in (tmp_path / "whole", stopped)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_training_that_broke_off_begins_again_with_all_tokens_and_ends_with_the_routers_own_share(tmp_path):
    model, held_out, seen = tiny_model("chiar", routed_share=0.25, **EXPLORING).float(), ids(8, 64), []

    class Watched(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(budget_routers(kwargs["model"])[0].shares[-1])
            if len(seen) == 2:
                raise KeyboardInterrupt

    arguments = TrainingArguments(str(tmp_path), max_steps=4, report_to="none", use_cpu=True, save_strategy="no")
    texts = [{"input_ids": row, "labels": row} for row in ids(32, 16)]
    callbacks = [ThresholdRefresh(held_out, dense_steps=3), Watched()]
    trainer = Trainer(model, arguments, train_dataset=texts, callbacks=callbacks)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()
    assert seen == pytest.approx([1.0, 0.75, 1.0, 0.75, 0.5, 0.25])
    with torch.no_grad():
        shares = [trace.shares()["attention"] for trace in model.eval()(held_out, output_routing=True).routing]
    assert shares == pytest.approx([0.25] * 2, abs=0.01)  # calibrated after the last step


@pytest.mark.parametrize("keys", ["all", "routed"])
def test_what_training_cost_is_the_mean_over_its_steps(keys):
    model, input_ids, held_out = tiny_model("chiar", attention_keys=keys, **EXPLORING), ids(8, 128), ids(8, 128, seed=1)
    calibrate(model, held_out)
    thresholds = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.endswith("thresholds")}
    start, each = DenseStart(model, steps=8), []
    for step in range(16):
        start.set(start.remaining(step))
        calibrate(model, held_out)
        torch.manual_seed(step)
        each.append(flops_ratios(model, input_ids)["training_ratio"])
    assert each[0] > each[-1] + 0.02
    found = training_ratio(model, start, 16, (input_ids, None), (held_out, None))
    assert found == pytest.approx(sum(each) / 16, abs=0.02 * (each[0] - each[-1]))
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in thresholds.items())
    assert [router.shares[-1] for router in budget_routers(model)] == [0.5, 0.5]


def test_a_dense_start_is_told_as_what_training_cost(plan, tmp_path):
    dense = train(plan, prepare(plan), tmp_path / "dense")
    without = replace(plan, dense_steps=0)
    sparse = train(without, prepare(without), tmp_path / "sparse")
    extra = dense["flops"]["training_ratio"] - sparse["flops"]["training_ratio"]
    assert extra > 0.02
    assert dense["flops"]["executed_ratio"] == pytest.approx(sparse["flops"]["executed_ratio"], abs=0.2 * extra)


def test_a_twin_that_does_not_route_is_trained_without(plan, tmp_path):
    plan = replace(plan, steps=3, dense_steps=2)
    runs = compare(plan, "full_attention", tmp_path / "whole")["runs"]
    assert [run["plan"]["dense_steps"] for run in runs.values()] == [2, 0]
    fields = plan.fields | {"routed_share": None}
    runs = compare(replace(plan, fields=fields), "spectral", tmp_path / "routed")["runs"]
    assert [run["plan"]["dense_steps"] for run in runs.values()] == [2, 2]


def test_what_has_no_share_to_lower_is_refused(plan, tmp_path):
    for recipe, fields in (
        ("full_attention", {"routed_share": None, "layer_operators": [["attention"]] * 5}),
        ("chiar", {"routed_share": 1.0}),
        ("chiar", {"routed_share": None, "router": "recurrence"}),
        (
            "spectral",
            {"routed_share": None, "router": "threshold", "layer_operators": [["dct", "rbf", "attention"]] * 5},
        ),
        ("spectral", {"routed_share": None, "router": "hard"}),
    ):
        with pytest.raises(ValueError, match=f"recipe '{recipe}' gives no share of the tokens that a dense start"):
            train(replace(plan, recipe=recipe, fields=plan.fields | fields), prepare(plan), tmp_path / "run")
        assert not (tmp_path / "run").exists()
        model = tiny_model(recipe, **{name: value for name, value in fields.items() if value is not None})
        with pytest.raises(ValueError, match="is for routers that give two operators a share"):
            DenseStart(model, 4)
    for steps in (-1, 12):
        with pytest.raises(ValueError, match=rf"dense_steps must lie in \[0, 12\), of all steps, got {steps}"):
            replace(plan, dense_steps=steps)
