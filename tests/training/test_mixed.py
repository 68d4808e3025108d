"""Mixed training: further tasks beside language modelling, each with a head on the whole body."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.helpers import EXPLORING, ids, logs, tiny_config

from chiaroscuro import ChiarForSequenceClassification
from chiaroscuro.modeling import ChiarForCausalLM, ChiarForMixedTasks
from chiaroscuro.modeling.heads import ClassificationHead
from chiaroscuro.routing import threshold_routers
from chiaroscuro.training import TrainingPlan, load_run, prepare, train

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def plan(english, monkeypatch) -> TrainingPlan:
    monkeypatch.setattr("chiaroscuro.data.labelled.LISTOPS_SIZES", {"train": 400, "validation": 50, "test": 50})
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    return TrainingPlan(
        data=str(english),
        vocab_size=300,
        steps=12,
        batch_size=4,
        seq_len=33,
        warmup_steps=1,
        save_every=3,
        mixed={"listops_flat": "listops_flat"},
        fields=size,
    )


def mixed_model() -> ChiarForMixedTasks:
    torch.manual_seed(0)
    return ChiarForMixedTasks(tiny_config(task_labels={"imdb": 2, "listops_flat": 10})).eval()


def test_a_head_is_a_classifier_that_shares_the_body():
    model = mixed_model()
    classifier = model.classifier("listops_flat")
    assert isinstance(classifier, ChiarForSequenceClassification)
    input_ids = ids(3, 7)
    pooled = model.model(input_ids).last_hidden_state.mean(1)
    expected = torch.nn.Sequential(*model.classifiers["listops_flat"])(pooled)
    torch.testing.assert_close(classifier(input_ids).logits, expected)
    classifier(input_ids, labels=torch.tensor([1, 2, 9])).loss.backward()
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.classifiers["imdb"].parameters())
    with pytest.raises(ValueError, match="no head for task 'chess'; heads: imdb, listops_flat"):
        model.classifier("chess")


def test_it_is_saved_with_its_heads_and_opens_as_a_language_model_too(tmp_path):
    model = mixed_model()
    model.save_pretrained(tmp_path)
    for cls in (ChiarForMixedTasks, ChiarForCausalLM):
        assert torch.equal(cls.from_pretrained(tmp_path)(ids(2, 5)).logits, model(ids(2, 5)).logits)
    again = ChiarForMixedTasks.from_pretrained(tmp_path)
    assert torch.equal(again.classifier("imdb")(ids(2, 5)).logits, model.classifier("imdb")(ids(2, 5)).logits)
    model.classifier("imdb").save_pretrained(tmp_path / "imdb")
    alone = ChiarForSequenceClassification.from_pretrained(tmp_path / "imdb")
    assert torch.equal(alone(ids(2, 5)).logits, model.classifier("imdb")(ids(2, 5)).logits)


def test_a_quarter_of_the_steps_gets_a_batch_drawn_by_step_and_seed(plan):
    task = prepare(plan)
    batches = [task.extra_batch(step) for step in range(400)]
    assert sum(batch is not None for batch in batches) == pytest.approx(100, abs=25)
    again = [prepare(plan).extra_batch(step) for step in range(40)]
    for batch, same in zip(batches, again, strict=False):
        assert (batch is None) == (same is None)
        assert batch is None or torch.equal(batch[1]["input_ids"], same[1]["input_ids"])
    texts = {task.tokenizer.decode(batch[1]["input_ids"][0]) for batch in batches if batch}
    assert all(text.startswith("[M") for text in texts)
    assert len(texts) > 50


def test_a_mixed_run_is_measured_on_both_and_goes_on_as_if_it_had_not_stopped(plan, tmp_path):
    task = prepare(plan)
    whole = train(plan, task, tmp_path / "whole")
    assert set(whole["tasks"]) == {"listops_flat"}
    run = load_run(tmp_path / "whole")
    assert isinstance(run.model, ChiarForMixedTasks)
    assert task.measure(run.model, "test").tasks == whole["tasks"]

    alone = replace(plan, mixed={})
    plain = train(alone, prepare(alone), tmp_path / "plain")
    assert plain["tasks"] is None
    assert plain["loss"] != whole["loss"]
    assert plain["loss"] == pytest.approx(whole["loss"], rel=0.2)

    stopped = tmp_path / "stopped"
    (stopped / "checkpoints").mkdir(parents=True)
    (tmp_path / "whole" / "checkpoints" / "checkpoint-9").rename(stopped / "checkpoints" / "checkpoint-9")
    (stopped / "plan.json").write_text((tmp_path / "whole" / "plan.json").read_text())
    resumed = train(plan, task, stopped, resume=True)
    assert resumed["loss"] == whole["loss"]


def test_the_extra_loss_moves_the_head(plan, tmp_path):
    task = prepare(plan)
    train(plan, task, tmp_path / "run")
    added = [task.extra_batch(step) is not None for step in range(plan.steps)]
    losses = [line["loss"] for line in logs(tmp_path / "run")]
    assert True in added
    # A step with a batch of ten classes has ln 10 more to lose.
    with_batch = [loss for loss, has in zip(losses, added, strict=True) if has]
    without = [loss for loss, has in zip(losses, added, strict=True) if not has]
    assert sum(with_batch) / len(with_batch) - sum(without) / len(without) == pytest.approx(2.3, abs=0.3)


def test_extra_batches_are_as_precise_as_the_others(plan, tmp_path, monkeypatch):
    seen = set()

    def noting(self, hidden, mask=None):
        logits = forward(self, hidden, mask)
        seen.update({logits.dtype} if self.training else ())
        return logits

    forward = ClassificationHead.forward
    monkeypatch.setattr(ClassificationHead, "forward", noting)
    plan = replace(plan, steps=4, bf16=True)
    train(plan, prepare(plan), tmp_path / "run")
    assert seen == {torch.bfloat16}


def test_thresholds_follow_the_text_and_not_the_other_tasks(plan, tmp_path, monkeypatch):
    seen = []

    def noting(model, gathered):
        seen.extend(router.seen[0].shape[:2] for router in threshold_routers(model))

    monkeypatch.setattr("chiaroscuro.training.trainer.follow", noting)
    plan = replace(plan, fields=plan.fields | EXPLORING | {"num_hidden_layers": 5})
    task = prepare(plan)
    monkeypatch.setattr(
        task, "extra_batch", lambda step: ("listops_flat", {"input_ids": ids(3, 9), "labels": ids(3, 1)[:, 0] % 10})
    )
    train(plan, task, tmp_path / "run")
    assert set(seen) == {(plan.batch_size, plan.seq_len)}


def test_several_processes_do_not_train_on_further_tasks(plan, tmp_path, monkeypatch):
    task = prepare(plan)
    monkeypatch.setattr("chiaroscuro.training.run.ranks", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match="further tasks .* one process"):
        train(plan, task, tmp_path / "run")


def test_a_mixed_run_is_measured_on_further_texts_as_a_language_model(plan, english, tmp_path):
    task = prepare(replace(plan, steps=2, test_on={"own": str(english)}))
    results = train(task.plan, task, tmp_path / "run")
    assert results["test_on"]["own"]["tasks"] is None
    assert results["test_on"]["own"]["loss"] == pytest.approx(results["loss"], rel=0.1)


def test_only_language_modelling_takes_further_tasks():
    with pytest.raises(ValueError, match="only language modelling takes further tasks, not task 'imdb'"):
        TrainingPlan(task="imdb", mixed={"listops_flat": ""})
    with pytest.raises(ValueError, match="unknown further task 'recall'; known ones: imdb, listops, listops_flat"):
        TrainingPlan(mixed={"recall": ""})


def test_expressions_in_words_are_not_cut(plan):
    with pytest.raises(ValueError, match=r"expressions of listops_flat have up to \d\d tokens.* windows of 12 are too"):
        prepare(replace(plan, seq_len=12))
