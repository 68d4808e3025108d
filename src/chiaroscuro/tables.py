"""What the command line shows as tables."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from chiaroscuro.analysis import Finding
    from chiaroscuro.bench import Measured
    from chiaroscuro.routing import Calibration

OF_A_RUN = {
    "accuracy": ("accuracy", "{:.2%}"),
    "perplexity": ("perplexity", "{:.1f}"),
    "bits_per_byte": ("bits per byte", "{:.3f}"),
    "attention_ratio": ("attention FLOPs, to full attention", "{:.3f}"),
    "total_ratio": ("all FLOPs, planned", "{:.3f}"),
    "executed_ratio": ("all FLOPs, executed", "{:.3f}"),
    "parameters": ("parameters", "{:,}"),
    "train_seconds": ("training seconds", "{:.0f}"),
    "tokens_per_second": ("tokens per second", "{:,.0f}"),
    "tokens": ("tokens", "{:,}"),
    "window": ("tokens of a window", "{:,}"),
    "stride": ("stride of the window", "{:,}"),
}

OF_A_WORD_CLASS = {
    "tokens": "{:,}",
    "entropy_before": "{:.4f}",
    "entropy": "{:.4f}",
    "attention": "{:.2f}",
    "loss": "{:.2f}",
    "benefit": "{:+.3f}",
}


def runs(reports: Mapping[str, Mapping[str, Any]], title: str | None = None) -> Table:
    """Reports side by side, with the rows that any of them has, and the shares per layer."""
    table = Table("", *map(escape, reports), title=None if title is None else escape(title))
    flat = [dict(report) | report.get("flops", {}) for report in reports.values()]
    for task in sorted({task for report in flat for task in report.get("tasks") or ()}):
        reached = [(report.get("tasks") or {}).get(task) for report in flat]
        table.add_row(f"accuracy, {task}", *("" if each is None else f"{each:.2%}" for each in reached))
    for key, (label, form) in OF_A_RUN.items():
        if any(report.get(key) is not None for report in flat):
            table.add_row(label, *(form.format(report[key]) if report.get(key) is not None else "" for report in flat))
    layers = sorted({layer for report in flat for layer in report.get("routing", {})}, key=int)
    for layer in layers:
        shares = [report.get("routing", {}).get(layer, {}) for report in flat]
        cells = [", ".join(f"{name} {share:.0%}" for name, share in each.items()) for each in shares]
        table.add_row(f"layer {int(layer) + 1} routes to", *cells)
    return table


def word_classes(by_class: Mapping[str, Mapping[str, float]], layer: int) -> Table:
    """What the tokens of each class of words get in a layer."""
    table = Table("", *(key.replace("_", " ") for key in OF_A_WORD_CLASS), title=f"layer {layer + 1}")
    for name, group in by_class.items():
        table.add_row(name, *(form.format(group[key]) for key, form in OF_A_WORD_CLASS.items()))
    return table


def thresholds(layers: "Sequence[Calibration]", noise: float | None) -> Table:
    """Thresholds of each layer, beside the entropy of white noise where they are such."""
    title = None if noise is None else f"white noise: entropy {noise:.4f}"
    table = Table("layer", "tau_low", "tau_high", "mean score", "deviation", title=title)
    for layer in layers:
        numbers = (layer.low, layer.high, layer.mean, layer.deviation)
        table.add_row(str(layer.layer + 1), *(f"{number:.4f}" for number in numbers))
    return table


def times(measured: "Measured") -> Table:
    """The sides of a case of the bench, and our time in times of theirs."""
    heads = ("", "ms", "ratio (quartiles)", "by FLOPs", "reached", "at most", "FLOPs to plan", "MiB")
    table = Table(*heads, title=measured.name)
    ours = next(iter(measured.seconds))
    for side, seconds in measured.seconds.items():
        cells = ["", "", "", ""]
        if side != ours:
            middle, low, high = measured.ratio[side]
            bound = f"{measured.at_most[side]:.2f}" if side in measured.at_most else ""
            cells = [f"{middle:.3f} ({low:.3f} to {high:.3f})", f"{measured.predicted[side]:.3f}"]
            cells += [f"{measured.reached[side]:.0%}", bound]
        to_plan = f"{measured.executed_to_planned[side]:.3f}" if side in measured.planned else ""
        table.add_row(side, f"{seconds * 1e3:.1f}", *cells, to_plan, f"{measured.peak_bytes[side] / 2**20:.0f}")
    return table


def findings(found: "Sequence[Finding]", title: str) -> Table:
    """What each check of an audit found."""
    table = Table("", "", "", title=escape(title), show_header=False)
    words = {True: "holds", False: "[bold]FAILS[/bold]", None: "does not apply"}
    for finding in found:
        table.add_row(finding.check, words[finding.holds], escape(finding.detail))
    return table
