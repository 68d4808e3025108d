"""Training runs: what they leave, that they repeat, how their tokens are routed, and what is compared."""

import json
import math
import os
import warnings
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pytest
import torch
from tests.helpers import EXPLORING, ids, logs, tiny_model
from transformers import TrainerState, TrainingArguments

from chiaroscuro import ChiarForCausalLM
from chiaroscuro.mixers import RBFMixer
from chiaroscuro.routing import ThresholdRouter
from chiaroscuro.training import Diverged, ThresholdRefresh, TrainingPlan, compare, load_run, prepare, task_of, train
from chiaroscuro.training.folder import alone_in
from chiaroscuro.training.run import _trainer
from chiaroscuro.training.trainer import RoutingTrainer

pytestmark = pytest.mark.usefixtures("cache")


def test_a_recipe_keeps_its_sizes_and_others_are_small(english):
    def sizes(recipe, **fields):
        config = TrainingPlan(recipe=recipe, data=str(english), fields=fields).config({})
        return config.hidden_size, config.num_hidden_layers

    assert sizes("chiar") == (128, 5)
    assert sizes("v2_400m") == (1024, 28)
    assert sizes("v2_400m", hidden_size=64) == (64, 28)
    assert sizes("chiar", layer_operators=[["none"], ["attention"]]) == (128, 2)


@pytest.mark.parametrize(("bf16", "has_instructions", "warned"), [(True, False, 1), (True, True, 0), (False, False, 0)])
def test_bfloat16_on_a_processor_without_it_is_warned_of(plan, tmp_path, monkeypatch, bf16, has_instructions, warned):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_instructions)
    plan = replace(plan, steps=1, bf16=bf16)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        train(plan, prepare(plan), tmp_path / "run")
    assert sum("no instructions for bfloat16" in str(each.message) for each in found) == warned


def test_another_recipe_is_as_wide_as_the_one_that_it_is_held_against(plan, tmp_path):
    plan = replace(plan, recipe="v1_dct_attention", steps=1, fields={"num_hidden_layers": 2})
    runs = compare(plan, "full_attention", tmp_path / "two")["runs"]
    assert {run["plan"]["fields"].get("hidden_size", 256) for run in runs.values()} == {256}
    assert load_run(tmp_path / "two" / "full_attention").model.config.hidden_size == 256


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
    assert "total_flos" not in (out / "metrics.jsonl").read_text()  # of a dense model, by another convention
    assert set(results["flops"]) == {"attention_ratio", "total_ratio", "executed_ratio", "training_ratio"}
    assert results["tokens_seen"] == 8 * 4 * 33
    assert set(results["routing"]) == {"3"}
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
    plan = replace(plan, fields=plan.fields | EXPLORING)
    train(plan, prepare(plan), tmp_path / "run")
    first = logs(tmp_path / "run")[0]
    assert first["step"] == 1
    assert set(first["routing"]["3"]) == {"none", "attention"}
    entropy = -sum(share * math.log(share) for share in first["routing"]["3"].values())
    assert first["utilisation_entropy"]["3"] == pytest.approx(entropy, abs=1e-6)
    low, high = first["thresholds"]["3"]
    assert low == high != 0.0  # between two operators there is one place, and it was looked for


@pytest.mark.parametrize("recipe", ["chiar", "v1_three_operator"])
def test_one_seed_gives_one_curve_and_another_seed_another(plan, tmp_path, recipe):
    plan = replace(plan, recipe=recipe)
    task = prepare(plan)
    train(plan, task, tmp_path / "first")
    train(plan, task, tmp_path / "again")
    train(replace(plan, seed=1), task, tmp_path / "other")
    assert len(logs(tmp_path / "first")) == 8
    assert logs(tmp_path / "first") == logs(tmp_path / "again")
    assert logs(tmp_path / "first") != logs(tmp_path / "other")


def test_thresholds_are_calibrated_in_training_and_left_alone_in_evaluation(plan, tmp_path):
    plan = replace(plan, fields=plan.fields | EXPLORING)
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
        ThresholdRefresh(ids(2, 32), fit_mixers=fit).on_step_begin(None, state, None, model=model)
        assert ([mixer.log_gamma.item() for mixer in mixers] == before) == kept


@pytest.mark.parametrize("router", ["threshold", "learned", "benefit"])
@pytest.mark.parametrize("steps", [1, 8])
def test_a_divergence_that_thresholds_find_is_one_of_training(plan, tmp_path, router, steps):
    fields = plan.fields | {"router": router}
    diverging = replace(plan, learning_rate=1e30, warmup_steps=0, steps=steps, fields=fields)
    with pytest.raises(Diverged, match=r"training diverged at step \d"):
        train(diverging, prepare(diverging), tmp_path / "run")


@pytest.mark.parametrize(
    ("recipe", "router"), [("full_attention", "threshold"), ("chiar", "random"), ("chiar", "benefit")]
)
def test_a_divergence_in_the_last_step_is_one_too(plan, tmp_path, recipe, router):
    last = replace(
        plan, recipe=recipe, learning_rate=1e30, warmup_steps=0, steps=1, fields=plan.fields | {"router": router}
    )
    with pytest.raises(Diverged, match="training diverged at step 1 with"):
        train(last, prepare(last), tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    ("router", "share"), [("benefit", 0.5), ("benefit", 0.125), ("learned", 0.25), ("threshold", 0.75)]
)
def test_as_many_tokens_attend_in_each_step_as_should(plan, tmp_path, router, share):
    fields = plan.fields | {"router": router, "routed_share": share}
    plan = replace(plan, steps=40, batch_size=16, seq_len=65, learning_rate=4e-3, warmup_steps=8, fields=fields)
    train(plan, prepare(plan), tmp_path / "run")
    attended = [each["attention"] for line in logs(tmp_path / "run") for each in line["routing"].values()]
    explored = 1 / 8 if router == "benefit" else 0.0  # with a gate of a half on average
    expected = share + explored * (0.5 - share)
    assert len(attended) == 40
    assert sum(abs(each - expected) for each in attended) / 40 < 0.1  # 0.2 to 0.6 if thresholds stand still


def test_a_name_that_is_no_unicode_is_trained_on(plan, english, tmp_path):
    text = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    text.write_text(english.read_text())
    plan = replace(plan, data=str(text), steps=1)
    train(plan, prepare(plan), tmp_path / "run")
    assert "caf\\udce9.txt" in (tmp_path / "run" / "README.md").read_text()
    assert task_of(load_run(tmp_path / "run")).plan.data == str(text)


@pytest.mark.parametrize(
    "change",
    [
        *({"data": ""}, {"steps": 0}, {"save_every": 0}, {"batch_size": 0}, {"seq_len": 1}, {"learning_rate": 0.0}),
        *({"warmup_steps": -1}, {"weight_decay": -0.1}, {"weight_decay": float("nan")}),
    ],
)
def test_what_cannot_be_trained_with_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        TrainingPlan(**change)


def test_the_learning_rate_rises_over_a_tenth_of_the_steps_where_nothing_is_said():
    assert [TrainingPlan(steps=steps).warmup for steps in (1, 20, 400)] == [1, 2, 40]
    assert TrainingPlan(steps=20, warmup_steps=0).warmup == 0


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


def test_comparison_gives_both_the_same_batches(plan, tmp_path, monkeypatch):
    batches, compute_loss = [], RoutingTrainer.compute_loss

    def noted(self, model, inputs, *args, **kwargs):
        batches.append(inputs["input_ids"].clone())
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(RoutingTrainer, "compute_loss", noted)
    comparison = compare(plan, "full_attention", tmp_path / "both")
    assert len(batches) == 2 * plan.steps
    assert all(map(torch.equal, batches[: plan.steps], batches[plan.steps :]))
    assert set(comparison["runs"]) == {"chiar", "full_attention"}
    assert comparison["runs"]["full_attention"]["flops"]["executed_ratio"] == pytest.approx(1.0)
    assert comparison["runs"]["chiar"]["flops"]["attention_ratio"] < 0.8
    assert comparison["by_chance"]["perplexity of a unigram model"] > 1.0
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(plan, "chiar", tmp_path / "same")


def test_what_a_plan_says_of_routing_is_for_the_first_of_a_comparison(plan, tmp_path):
    routed = replace(plan, steps=1, fields=plan.fields | {"layer_operators": [["dct", "attention"]] * 5})
    runs = compare(routed, "full_attention", tmp_path / "both")["runs"]
    assert [len(run["routing"]) for run in runs.values()] == [5, 0]


def test_a_comparison_leaves_a_run_that_is_under_way_alone(plan, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "plan.json").write_text("{}")
    with alone_in(out), pytest.raises(ValueError, match="another process is at work in .*run: wait"):
        compare(plan, "full_attention", out)
    assert (out / "plan.json").exists()


def test_other_text_is_measured_whole(plan, english, tmp_path):
    task = prepare(replace(plan, eval_tokens=64, steps=1, test_on={"own": str(english)}))
    results = train(task.plan, task, tmp_path / "run")
    assert results["validation"]["tokens"] == 64
    other = task_of(load_run(tmp_path / "run"), str(english))
    assert other.measure(load_run(tmp_path / "run").model, "test").tokens == results["test_on"]["own"]["tokens"] > 1000


def test_a_run_is_not_measured_on_what_has_taken_the_place_of_its_text(plan, english, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(english.read_text())
    plan = replace(plan, data=str(text), steps=1)
    train(plan, prepare(plan), tmp_path / "run")
    run = load_run(tmp_path / "run")
    before = task_of(run).digests()
    text.write_text(english.read_text() + "One more line.\n")
    with pytest.raises(ValueError, match=r"text\.txt is no longer what the run in .* was trained on \(.*test differ"):
        task_of(run)
    assert task_of(run, str(text)).digests() != before
    (tmp_path / "run" / "data.json").unlink()  # as of runs that came without one
    assert task_of(run).digests() != before


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
