"""Accuracy of a classifier, and where the tokens went.

Shapes: B batch, T tokens, O operators.
"""

from rich.progress import track
from torch.nn.functional import cross_entropy

from chiaroscuro.data import LabelledSequences, pad_batch
from chiaroscuro.evaluation.perplexity import Evaluation, ShareCounter
from chiaroscuro.modeling import ChiarForSequenceClassification
from chiaroscuro.ops.evaluating import evaluating


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
        for start in track(starts, "evaluating", transient=True, disable=not show_progress):
            batch = pad_batch([sequences[index] for index in order[start : start + batch_size]])
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            labels = batch.pop("labels")
            output = model(**batch, use_cache=False, output_routing=True)
            nats += float(cross_entropy(output.logits.float(), labels, reduction="sum"))
            right += int((output.logits.argmax(-1) == labels).sum())
            tokens += int(batch["attention_mask"].sum())
            shares.add(output.routing)
    return Evaluation(nats / len(order), tokens, shares.mean(), accuracy=right / len(order))
