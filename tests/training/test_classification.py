"""Classifiers, trained and judged like language models."""

import json
import random
from dataclasses import replace

import pytest
import torch

from chiaroscuro import ChiarForSequenceClassification, calibrate
from chiaroscuro.analysis import audit, subject
from chiaroscuro.data import generate_listops
from chiaroscuro.evaluation import evaluate_classifier
from chiaroscuro.flops import flops_ratios
from chiaroscuro.training import TrainingPlan, compare, load_run, prepare, task_of, train

pytestmark = pytest.mark.usefixtures("cache")
WORDS = ["film", "actor", "scene", "plot", "music", "night", "story", "camera"]


@pytest.fixture
def plan(tmp_path):
    """Reviews of eight neutral words with one that tells."""
    rng = random.Random(0)
    for name, count in (("train", 400), ("test", 80)):
        lines = []
        for _ in range(count):
            label = rng.randrange(2)
            words = [*rng.choices(WORDS, k=8), ("awful", "great")[label]]
            rng.shuffle(words)
            lines.append(json.dumps({"text": " ".join(words), "label": label}))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return TrainingPlan(
        task="imdb",
        data=str(tmp_path),
        vocab_size=320,
        steps=200,
        batch_size=16,
        seq_len=24,
        warmup_steps=5,
        fields=size,
    )


def test_of_a_classifier_without_a_record_nobody_guesses_what_it_was_trained_for(plan, tmp_path):
    task = prepare(replace(plan, steps=1))
    train(task.plan, task, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(ValueError, match="results.json does not say what task the run was trained on"):
        task_of(load_run(tmp_path / "run"), str(tmp_path))


def test_a_classifier_learns_and_its_folder_says_how_well(plan, tmp_path):
    task = prepare(plan)
    results = train(plan, task, tmp_path / "run")
    words, chance = task.by_chance()
    assert words == "accuracy of the commonest label"
    assert chance < 0.7
    assert results["accuracy"] > 0.95
    # Nine words, most of them one token; what is padding to the 24 of a window is not seen.
    assert 8 * 16 * 200 <= results["tokens_seen"] < 12 * 16 * 200
    assert results["validation"]["accuracy"] > 0.9
    assert results["perplexity"] is None
    assert 0 < results["flops"]["executed_ratio"] <= 1
    run = load_run(tmp_path / "run")
    assert isinstance(run.model, ChiarForSequenceClassification)
    again = prepare(TrainingPlan(**(run.results["plan"] | {"tokenizer": str(tmp_path / "run")})))
    assert again.measure(run.model, "test").accuracy == results["accuracy"]


def test_thresholds_and_flops_are_of_sequences_as_the_classifier_gets_them(plan):
    plan = replace(plan, recipe="spectral", fields=plan.fields | {"layer_operators": [["dct", "attention"]] * 2})
    task = prepare(plan)
    ids_BT, mask_BT = task.calibration_text(10**9)
    validation = task.sequences["validation"]
    assert len(ids_BT) == len(validation)
    for row, mask, index in zip(ids_BT, mask_BT, range(len(ids_BT)), strict=True):
        assert torch.equal(row[mask.bool()], validation[index]["input_ids"])
    few, few_mask = task.calibration_text(100)
    assert 100 <= few_mask.sum() < 150
    assert task.tokenizer.eos_token_id not in few[few_mask.bool()]
    model = task.build(plan.config(task.fields())).eval()
    calibrate(model, *task.calibration_text(10**9))
    routing = model(ids_BT, attention_mask=mask_BT, output_routing=True).routing
    commonest = int(ids_BT[mask_BT.bool()].bincount().max()) / int(mask_BT.sum())  # which are not parted
    assert [trace.shares()["attention"] for trace in routing] == pytest.approx([0.5] * 2, abs=commonest)
    assert 0.7 < flops_ratios(model, *task.sample("test", 10**9))["total_ratio"] < 1


def test_few_short_sequences_are_enough_and_audited_as_they_are(plan, tmp_path):
    plan = replace(plan, steps=1, seq_len=512, fields=plan.fields | {"layer_operators": [["dct", "attention"]] * 2})
    plan = replace(plan, recipe="spectral", fields=plan.fields | {"max_position_embeddings": 512})
    task = prepare(plan)  # all of a split are no window of 512
    assert sum(len(task.sequences["test"][index]["input_ids"]) for index in range(80)) < 2 * 512
    train(plan, task, tmp_path / "run")
    found = subject(str(tmp_path / "run"))
    B, T = found.input_ids_BT.shape
    assert B >= 40
    assert 8 < T < 16
    assert task.tokenizer.eos_token_id not in found.input_ids_BT
    assert False not in [finding.holds for finding in audit(*found)]


@pytest.mark.parametrize("task", ["imdb", "recall"])
def test_only_a_language_model_is_measured_on_a_part(plan, task):
    with pytest.raises(ValueError, match="only a language model is measured on a part"):
        replace(plan, task=task, eval_tokens=64)


def test_accuracy_by_hand_and_whatever_the_batches(plan):
    task = prepare(plan)
    model = task.build(plan.config(task.fields())).eval()
    sequences = task.sequences["test"]
    right = sum(
        int(model(example["input_ids"][None]).logits.argmax()) == int(example["labels"])
        for example in (sequences[index] for index in range(len(sequences)))
    )
    for batch_size in (1, 7, 100):
        evaluation = evaluate_classifier(model, sequences, batch_size)
        assert evaluation.accuracy == right / len(sequences)
        assert evaluation.tokens == sum(len(sequences[index]["input_ids"]) for index in range(len(sequences)))


def test_twins_are_compared_on_a_classification_too(plan, tmp_path):
    comparison = compare(plan, "full_attention", tmp_path / "both")
    assert all(run["accuracy"] > 0.9 for run in comparison["runs"].values())
    assert list(comparison["by_chance"]) == ["accuracy of the commonest label"]


def test_listops_has_a_model_of_ten_labels(monkeypatch):
    small = {"train": 40, "validation": 10, "test": 10}
    monkeypatch.setattr("chiaroscuro.data.labelled.LISTOPS_SIZES", small)
    task = prepare(TrainingPlan(task="listops_flat", seq_len=10))
    model = task.build(TrainingPlan(task="listops_flat", seq_len=12).config(task.fields()))
    assert model.num_labels == 10
    assert model.config.vocab_size == len(generate_listops("listops_flat", small).tokenizer)
    with torch.no_grad():
        each = [task.examples["test"][index] for index in range(10)]
        right = sum(
            int(model.eval()(each_["input_ids"][None]).logits.argmax()) == int(each_["labels"]) for each_ in each
        )
    assert task.measure(model, "test").accuracy == right / 10


@pytest.mark.parametrize(("task", "length"), [("listops", 128), ("listops_flat", 9)])
def test_expressions_are_not_cut(task, length):
    with pytest.raises(ValueError, match=rf"expressions of {task} have up to .* windows of {length} are too short"):
        prepare(TrainingPlan(task=task, seq_len=length))
