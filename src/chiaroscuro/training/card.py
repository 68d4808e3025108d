"""What a run adds to the card of its model: data, training, figures and routing shares."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from transformers import PreTrainedModel

from chiaroscuro.modeling import markdown_table, model_card, pipeline_of

_METRICS = {
    "accuracy": ("accuracy", "{:.2%}"),
    "perplexity": ("perplexity", "{:.2f}"),
    "bits_per_byte": ("bits per byte", "{:.3f}"),
}
_FLOPS = {
    "attention_ratio": "attention FLOPs, to full attention",
    "total_ratio": "all FLOPs, planned",
    "executed_ratio": "all FLOPs, executed",
}


def run_card(model: PreTrainedModel, results: dict[str, Any]) -> ModelCard:
    """The card of a trained model. results: as `train` writes them."""
    plan, made = results["plan"], results["versions"]
    trained = {
        "data": _printable(results["data"]),
        "task": results["task"],
        "tokens seen": f"{results['tokens_seen']:,}",
        "steps": f"{results['steps']:,}, of {plan['batch_size']} windows of {plan['seq_len']} tokens",
        "peak learning rate": f"{plan['learning_rate']:g}",
        "seed": str(results["seed"]),
        "made by": f"`{_printable(made['command'])}`",
        "at": f"chiaroscuro {made['chiaroscuro']}, commit {made['commit']}, {made['machine']}",
    }
    measured = {name: form.format(results[key]) for key, (name, form) in _METRICS.items() if results[key] is not None}
    measured |= {f"accuracy, {task}": f"{accuracy:.2%}" for task, accuracy in (results["tasks"] or {}).items()}
    measured |= {name: f"{results['flops'][key]:.3f}" for key, name in _FLOPS.items()}
    measured |= {
        f"layer {int(layer) + 1} routes to": ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        for layer, shares in results["routing"].items()
    }
    record = f"## Training\n\n{markdown_table(trained)}\n\n## On held-out data\n\n{markdown_table(measured)}"
    return model_card(model, record, _figures(model, results))


def add_to_card(path: Path, line: str) -> None:
    """Add a line at the end of a card, where there is a card and it does not end in that line."""
    addition = f"\n{_printable(line)}\n"
    if path.exists() and not path.read_text(encoding="utf-8").endswith(addition):
        with path.open("a", encoding="utf-8") as card:
            card.write(addition)


def _printable(text: str) -> str:
    """Names of files need not be Unicode, as a card must."""
    return text.encode("utf-8", "backslashreplace").decode()


def _figures(model: PreTrainedModel, results: dict[str, Any]) -> list[EvalResult]:
    data = _printable(results["data"])
    about: dict[str, Any] = {
        "task_type": pipeline_of(model),
        "dataset_type": data,
        "dataset_name": data,
        "dataset_split": "test",
    }
    return [
        EvalResult(metric_type=key, metric_name=name, metric_value=results[key], **about)
        for key, (name, _) in _METRICS.items()
        if results[key] is not None
    ]
