"""Associative recall, learned and judged."""

import pytest
import torch

from chiaroscuro import ChiarConfig, ChiarForCausalLM
from chiaroscuro.data import generate_recall
from chiaroscuro.evaluation import evaluate_recall
from chiaroscuro.training import TrainingPlan, load_run, prepare, task_of, train

pytestmark = pytest.mark.usefixtures("cache")
SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}


def test_a_model_learns_to_recall_and_its_folder_says_how_well(tmp_path):
    plan = TrainingPlan(
        recipe="full_attention",
        task="recall",
        data="recall",
        vocab_size=64,
        seq_len=16,
        steps=400,
        batch_size=64,
        learning_rate=3e-3,
        fields=SIZE,
    )
    task = prepare(plan)
    words, chance = task.by_chance()
    assert (words, chance) == ("accuracy of a guess among the values of the example", 0.5)
    results = train(plan, task, tmp_path / "run")
    assert results["accuracy"] > 0.9
    assert results["validation"]["accuracy"] > 0.9
    assert results["perplexity"] is None
    run = load_run(tmp_path / "run")
    assert task_of(run).measure(run.model, "test").accuracy == results["accuracy"]


def test_accuracy_and_loss_by_hand():
    _, splits = generate_recall(16, 16, {"test": 40})
    torch.manual_seed(0)
    model = ChiarForCausalLM(ChiarConfig(vocab_size=16, initializer_range=0.5, **SIZE)).eval()
    nats, right, answers = 0.0, 0, 0
    with torch.no_grad():
        for example in splits["test"]:
            logits = model(example["input_ids"][None]).logits[0]
            for place, label in enumerate(example["labels"].tolist()):
                if label != -100:
                    nats -= float(logits[place - 1].log_softmax(-1)[label])
                    right += int(logits[place - 1].argmax()) == label
                    answers += 1
    found = evaluate_recall(model, splits["test"])
    assert found.tokens == answers == 2 * 40
    assert found.accuracy == right / answers
    assert found.loss == pytest.approx(nats / answers, rel=1e-5)
