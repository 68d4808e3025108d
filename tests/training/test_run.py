"""Training runs: what they leave, that they repeat, resume, and refuse."""

import json
import shutil
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pytest
import torch
from tests.helpers import ids, tiny_model
from transformers import TrainerState, TrainingArguments

from chiaroscuro import ChiarForCausalLM
from chiaroscuro.mixers import RBFMixer
from chiaroscuro.routing import ThresholdRouter
from chiaroscuro.training import Diverged, ThresholdRefresh, TrainingPlan, compare, load_run, prepare, task_of, train
from chiaroscuro.training.folder import alone_in
from chiaroscuro.training.run import _trainer

pytestmark = pytest.mark.usefixtures("cache")

TINY = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2}


@pytest.fixture
def plan(english) -> TrainingPlan:
    return TrainingPlan(
        data=str(english),
        vocab_size=300,
        steps=8,
        batch_size=4,
        seq_len=33,
        warmup_steps=2,
        calibrate_every=3,
        fields=TINY,
    )


def curve(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_a_run_leaves_all_that_is_needed_to_use_and_judge_it(plan, tmp_path):
    out = tmp_path / "run"
    returned = train(plan, prepare(plan), out)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl", "results.json"):
        assert (out / name).is_file()
    assert not list(out.glob("*.bin"))  # nothing pickled, as transformers' own settings would be
    results = json.loads((out / "results.json").read_text())
    assert results == returned
    expected = "recipe task data seed steps tokens_seen parameters loss perplexity bits_per_byte accuracy flops routing"
    assert set(expected.split()) | {"train_seconds", "tokens_per_second", "versions"} <= set(results)
    assert set(results["flops"]) == {"attention_ratio", "total_ratio", "executed_ratio", "training_ratio"}
    assert results["tokens_seen"] == 8 * 4 * 33
    assert set(results["routing"]) == {"3", "4"}
    assert sum(results["routing"]["3"].values()) == pytest.approx(1.0, abs=1e-5)
    run = load_run(out)
    assert isinstance(run.model, ChiarForCausalLM)
    assert not run.model.training
    assert run.results == results


def test_a_run_is_measured_on_further_texts_which_need_not_stay(plan, english, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("It was the best of times, it was the worst of times. " * 40)
    task = prepare(replace(plan, test_on={"own": str(english), "other": str(other)}))
    results = train(task.plan, task, tmp_path / "run")
    assert set(results["test_on"]) == {"own", "other"}
    whole = sum(len(task.tokens[split]) for split in ("train", "validation", "test"))
    assert results["test_on"]["own"]["tokens"] == pytest.approx(whole, abs=40)
    assert results["test_on"]["own"]["perplexity"] != results["perplexity"]
    run = load_run(tmp_path / "run")
    assert results["test_on"]["other"]["loss"] == task.measure(run.model, "other").loss
    other.unlink()
    assert task_of(run).measure(run.model, "test").loss == results["loss"]


def test_further_texts_are_for_language_models_and_not_called_as_splits_are():
    with pytest.raises(ValueError, match="only language models are tested on further texts, not task 'imdb'"):
        TrainingPlan(task="imdb", test_on={"other": "other.txt"})
    with pytest.raises(ValueError, match="a further text cannot be called 'test', which is a split"):
        TrainingPlan(test_on={"test": "other.txt"})


def test_metrics_hold_shares_utilisation_entropy_and_thresholds_per_layer(plan, tmp_path):
    train(plan, prepare(plan), tmp_path / "run")
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1
    assert set(first["routing"]["3"]) == {"none", "attention"}
    assert 0.0 <= first["utilisation_entropy"]["3"] <= 0.6932
    low, high = first["thresholds"]["3"]
    assert low == high != 0.0  # between two operators there is one place, and it was looked for


@pytest.mark.parametrize("recipe", ["chiar", "v1_three_operator"])
def test_one_seed_gives_one_curve_and_another_seed_another(plan, tmp_path, recipe):
    plan = replace(plan, recipe=recipe)
    task = prepare(plan)
    train(plan, task, tmp_path / "first")
    train(plan, task, tmp_path / "again")
    train(replace(plan, seed=1), task, tmp_path / "other")
    assert len(curve(tmp_path / "first")) == 8
    assert curve(tmp_path / "first") == curve(tmp_path / "again")
    assert curve(tmp_path / "first") != curve(tmp_path / "other")


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
    assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")[4:]
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
    assert len(curve(tmp_path / "run")) == 8
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


def test_thresholds_are_calibrated_in_training_and_left_alone_in_evaluation(plan, tmp_path):
    train(plan, prepare(plan), tmp_path / "run")
    run = load_run(tmp_path / "run")
    routers = [module for module in run.model.modules() if isinstance(module, ThresholdRouter)]
    before = [router.thresholds.clone() for router in routers]
    assert len(before) == 2
    for thresholds, router in zip(before, routers, strict=True):
        assert thresholds.tolist() != pytest.approx(router.start, abs=1e-6)
    run.model(run.tokenizer("Some text.", return_tensors="pt")["input_ids"])
    assert all(torch.equal(router.thresholds, known) for router, known in zip(routers, before, strict=True))
    assert all(0.3 < shares["attention"] < 0.7 for shares in run.results["routing"].values())


def test_a_model_that_was_trained_before_keeps_its_bandwidths():
    model, state = tiny_model("v1_three_operator"), TrainerState(global_step=0)
    mixers = [mixer for mixer in model.modules() if isinstance(mixer, RBFMixer)]
    before = [mixer.log_gamma.item() for mixer in mixers]
    for fit, kept in ((False, True), (True, False)):
        ThresholdRefresh(ids(2, 32), 5, fit_mixers=fit).on_step_begin(None, state, None, model=model)
        assert ([mixer.log_gamma.item() for mixer in mixers] == before) == kept


@pytest.mark.parametrize("router", ["threshold", "learned", "benefit"])
@pytest.mark.parametrize("steps", [1, 8])
def test_a_divergence_that_calibration_finds_is_one_of_training(plan, tmp_path, router, steps):
    fields = TINY | {"router": router}
    diverging = replace(plan, learning_rate=1e30, warmup_steps=0, steps=steps, calibrate_every=1, fields=fields)
    with pytest.raises(Diverged, match=r"training diverged at step \d"):
        train(diverging, prepare(diverging), tmp_path / "run")


def test_a_run_that_failed_at_its_start_does_not_block_its_folder(plan, tmp_path):
    out = tmp_path / "run"
    diverging = replace(plan, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"training diverged at step \d+ with a learning rate of up to 1e\+30"):
        train(diverging, prepare(diverging), out)
    assert (out / "plan.json").exists()
    assert train(plan, prepare(plan), out)["recipe"] == plan.recipe


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
            with pytest.raises(ValueError, match="another process is training in .*: wait"):
                train(plan, task, name)
    monkeypatch.chdir(run)
    train(plan, task, Path("."))
    with alone_in(run), pytest.raises(ValueError, match="another process is training in .*run: wait"):
        train(plan, task, run, resume=True)
    assert [path.name for path in tmp_path.iterdir() if "lock" in path.name] == []


def test_what_goes_on_from_nothing_makes_nothing(plan, tmp_path):
    with pytest.raises(ValueError, match="nothing to resume in"):
        train(plan, prepare(plan), tmp_path / "no" / "such", resume=True)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"fields": TINY | {"max_position_embeddings": 16}}, "longer than the 16"),
        ({"fields": {"hidden_size": 30, "num_attention_heads": 4}}, "does not divide into 4"),
        ({"seq_len": 5_000}, "fewer than one window of 5000"),
    ],
)
def test_a_plan_that_cannot_work_leaves_no_folder(plan, tmp_path, change, complaint):
    plan = replace(plan, **change)
    with pytest.raises(ValueError, match=complaint):
        train(plan, prepare(plan), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change",
    [
        *({"steps": 0}, {"save_every": 0}, {"batch_size": 0}, {"seq_len": 1}, {"learning_rate": 0.0}),
        *({"warmup_steps": -1}, {"weight_decay": -0.1}, {"weight_decay": float("nan")}),
    ],
)
def test_numbers_that_cannot_be_trained_with_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        TrainingPlan(**change)


def test_one_process_takes_one_gpu_of_several(plan, tmp_path, monkeypatch):
    found = TrainingArguments._setup_devices.func

    def see_two(arguments):
        device = found(arguments)
        arguments._n_gpu = 2
        return device

    seen = cached_property(see_two)
    seen.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", seen)
    task = prepare(plan)
    trainer = _trainer(plan, task.build(plan.config(task.fields())), task, tmp_path, [], sharded=False)
    assert trainer.args.n_gpu == 1


def test_an_unknown_recipe_is_answered_with_the_known_ones_before_any_work():
    with pytest.raises(ValueError, match="unknown recipe 'chair'; known recipes: chiar, full_attention"):
        TrainingPlan(recipe="chair")


def test_comparison_gives_both_the_same_batches(plan, tmp_path):
    comparison = compare(plan, "full_attention", tmp_path / "both")
    assert set(comparison["runs"]) == {"chiar", "full_attention"}
    assert comparison["runs"]["full_attention"]["flops"]["executed_ratio"] == pytest.approx(1.0)
    assert comparison["runs"]["chiar"]["flops"]["attention_ratio"] < 0.8
    assert comparison["by_chance"]["perplexity of a unigram model"] > 1.0
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(plan, "chiar", tmp_path / "same")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "results.json"])
def test_a_damaged_run_folder_is_named(plan, tmp_path, name):
    train(plan, prepare(plan), tmp_path / "run")
    file = tmp_path / "run" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"damaged|cannot be read"):
        load_run(tmp_path / "run")
    file.unlink()
    if name != "results.json":
        with pytest.raises(ValueError, match=r"missing|no tokenizer"):
            load_run(tmp_path / "run")
