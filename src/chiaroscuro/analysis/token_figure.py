"""The picture of a token study: entropies against those of noise, and what word classes get."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from chiaroscuro.analysis.words import CLASSES

MEASURES = {"entropy": "mean entropy", "attention": "share to attention", "benefit": "benefit of attention, nats"}


def draw_tokens(found: dict[str, Any], path: Path) -> None:
    """Write what `study_tokens` found to `path`: per layer a histogram, and below them a panel per measure."""
    layers = found["layers"]
    figure = Figure(figsize=(10, 3 * len(layers) + 3.2), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(len(layers), 1.1), squeeze=False)[:, 0]
    for (layer, figures), axes in zip(layers.items(), upper.subplots(len(layers), 1, squeeze=False)[:, 0], strict=True):
        for name, label in (("histogram_before", "before training"), ("histogram", "after")):
            axes.stairs(figures[name], found["bins"], fill=True, alpha=0.5, label=label)
        axes.axvline(found["noise_entropy"], color="black", linestyle="--", label="white noise, expected")
        seen = np.flatnonzero(np.add(figures["histogram"], figures["histogram_before"]))
        axes.set_xlim(found["bins"][seen[0]], found["bins"][seen[-1] + 1])
        axes.set(title=f"layer {int(layer) + 1}", xlabel="spectral entropy", ylabel="tokens")
        axes.legend(frameon=False)
    for axes, (measure, label) in zip(lower.subplots(1, len(MEASURES), sharey=True), MEASURES.items(), strict=True):
        for layer, figures in layers.items():
            names = [name for name in CLASSES if name in figures["by_class"]]
            values = [figures["by_class"][name][measure] for name in names]
            axes.plot(values, names, marker="o", linestyle="none", label=f"layer {int(layer) + 1}")
        axes.set_xlabel(label)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
