"""Accuracy of a classifier, or of a language model's answers, and where the tokens went.

Shapes: B batch, T tokens, O operators.
"""

from torch.nn.functional import cross_entropy
from torch.utils.data import default_collate

from chiaroscuro.data import LabelledSequences, RecallExamples, pad_batch
from chiaroscuro.data.recall import NO_ANSWER
from chiaroscuro.evaluation.perplexity import Evaluation, ShareCounter
from chiaroscuro.modeling import ChiarForCausalLM, ChiarForSequenceClassification
from chiaroscuro.progress import tracked
from chiaroscuro.routing.evaluating import evaluating


def evaluate_classifier(
    model: ChiarForSequenceClassification,
    sequences: LabelledSequences,
    batch_size: int = 32,
    show_progress: bool = False,
) -> Evaluation:
    """Every sequence once, those of like length together. The model is run in evaluation mode, its thresholds as they
    are."""
    nats, right, tokens, shares = 0.0, 0, 0, ShareCounter()
    order = (sequences.ends - sequences.starts).argsort(kind="stable").tolist()
    starts = range(0, len(order), batch_size)
    with evaluating(model):
        for start in tracked(starts, "evaluating", show_progress):
            batch = pad_batch([sequences[index] for index in order[start : start + batch_size]])
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            labels = batch.pop("labels")
            output = model(**batch, use_cache=False, output_routing=True)
            nats += float(cross_entropy(output.logits.float(), labels, reduction="sum"))
            right += int((output.logits.argmax(-1) == labels).sum())
            tokens += int(batch["attention_mask"].sum())
            shares.add(output.routing)
    return Evaluation(nats / len(order), tokens, shares.mean(), accuracy=right / len(order))


def evaluate_recall(model: ChiarForCausalLM, examples: RecallExamples, show_progress: bool = False) -> Evaluation:
    """Every answer of every example once: its loss, and how often it is the likeliest token. The model is run in
    evaluation mode, its thresholds as they are."""
    nats, right, answers, shares, batch_size = 0.0, 0, 0, ShareCounter(), 32
    starts = range(0, len(examples), batch_size)
    with evaluating(model):
        for start in tracked(starts, "evaluating", show_progress):
            batch = default_collate([examples[index] for index in range(len(examples))[start : start + batch_size]])
            output = model(batch["input_ids"].to(model.device), use_cache=False, output_routing=True)
            labels = batch["labels"][:, 1:].to(model.device)
            asked = labels != NO_ANSWER
            logits, labels = output.logits[:, :-1][asked].float(), labels[asked]
            nats += float(cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(-1) == labels).sum())
            answers += len(labels)
            shares.add(output.routing)
    return Evaluation(nats / answers, answers, shares.mean(), accuracy=right / answers)
