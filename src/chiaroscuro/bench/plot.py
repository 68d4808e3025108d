"""Time against sequence length."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure

from chiaroscuro.bench.measure import Measured


def plot(by_length: Mapping[int, Sequence[Measured]], path: Path) -> None:
    """Write to `path` a panel for each case of a target: the median time of each side by sequence length."""
    cases = list(zip(*by_length.values(), strict=True))
    figure = Figure(figsize=(5 * len(cases), 4), layout="constrained")
    panels = figure.subplots(1, len(cases), squeeze=False)[0]
    lengths = list(by_length)
    for axes, measured in zip(panels, cases, strict=True):
        for side, marker in zip(measured[0].seconds, cycle("osD^"), strict=False):
            axes.loglog(lengths, [each.seconds[side] * 1e3 for each in measured], marker=marker, label=side)
        axes.set_xticks(lengths, map(str, lengths))
        axes.minorticks_off()
        axes.set(title=f"{measured[0].name.split(',')[0]}, {measured[0].keys} keys", xlabel="tokens", ylabel="ms")
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
