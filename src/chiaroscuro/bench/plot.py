"""Time against sequence length."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from chiaroscuro.bench.measure import Measured


def plot(by_length: Mapping[int, Sequence[Measured]], path: Path) -> None:
    """Write to `path` a panel for each case of a target: the median time of each side by sequence length."""
    cases = list(zip(*by_length.values(), strict=True))
    figure = Figure(figsize=(5 * len(cases), 4), layout="constrained")
    panels = figure.subplots(1, len(cases), squeeze=False)[0]
    for axes, measured in zip(panels, cases, strict=True):
        for side in measured[0].seconds:
            axes.loglog(list(by_length), [each.seconds[side] * 1e3 for each in measured], marker="o", label=side)
        axes.set(title=f"{measured[0].name.split(',')[0]}, {measured[0].keys} keys", xlabel="tokens", ylabel="ms")
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
