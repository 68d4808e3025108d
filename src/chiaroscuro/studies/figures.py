"""The pictures of a study: training curves, where the tokens went while it trained, and quality against cost."""

import statistics
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chiaroscuro.studies.study import Study
from chiaroscuro.studies.table import Row, best_runs, measure_of, on_text

MARKERS = "osD^v<>PX*hd"
LINES = ("-", "--", ":", "-.")
COLOURS = 10  # before they come again
BESIDE: dict[str, Any] = {"frameon": False, "loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}  # of the axes


def draw(study: Study, results: dict[str, dict[str, Any]], table: list[Row], folder: Path) -> list[Path]:
    """Write the figures of a finished study into `folder`. Returns their files."""
    folder.mkdir(parents=True, exist_ok=True)
    own = best_runs(study, results)
    figures = {"curves": _curves(own), "shares": _shares(own), "cost": _cost(table), "budgets": _budgets(study, table)}
    written = []
    for name, figure in figures.items():
        if figure is not None:
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=120, bbox_inches="tight")
    return written


def _curves(own: dict[str, list[dict[str, Any]]]) -> Figure:
    """Training loss by step: the mean over the seeds, in a band from the lowest to the highest."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for index, results in enumerate(own.values()):
        steps = [line["step"] for line in results[0]["curve"]]
        losses = [[line["loss"] for line in result["curve"]] for result in results]
        low, high = [min(each) for each in zip(*losses, strict=True)], [max(each) for each in zip(*losses, strict=True)]
        means = [statistics.mean(each) for each in zip(*losses, strict=True)]
        (line,) = axes.plot(steps, means, linestyle=LINES[index // COLOURS % len(LINES)])
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="step", ylabel="training loss")
    axes.legend(axes.lines, own, **BESIDE)
    return figure


def _shares(own: dict[str, list[dict[str, Any]]]) -> Figure | None:
    """Per arm that routes, the share of the last operator of each layer while the first seed trained."""
    routed = {arm: results[0]["curve"] for arm, results in own.items() if "routing" in results[0]["curve"][0]}
    if not routed:
        return None
    figure = Figure(figsize=(7, 2.2 * len(routed)))
    panels: list[Axes] = list(figure.subplots(len(routed), 1, sharex=True, squeeze=False)[:, 0])
    for axes, (arm, lines) in zip(panels, routed.items(), strict=True):
        for layer, shares in lines[0]["routing"].items():
            operator = list(shares)[-1]
            axes.plot(
                [line["step"] for line in lines],
                [line["routing"][layer][operator] for line in lines],
                label=f"layer {int(layer) + 1}: {operator}",
            )
        axes.set(title=arm, ylabel="share", ylim=(0, 1))
        axes.legend(frameon=False)
    panels[-1].set_xlabel("step")
    return figure


def _cost(table: list[Row]) -> Figure:
    """What each arm reaches on the test split against the FLOPs of its training, from the worst seed to the best."""
    measure = measure_of(table[0])
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for index, row in enumerate(table):
        reached = row[measure]
        axes.errorbar(
            row["training_flops"]["mean"],
            reached["mean"],
            yerr=[[reached["mean"] - min(reached["values"])], [max(reached["values"]) - reached["mean"]]],
            marker=MARKERS[index % len(MARKERS)],
            linestyle="none",
            label=row["arm"],
        )
    axes.set(xlabel="FLOPs of training, to full attention", ylabel=measure)
    if measure == "perplexity":
        axes.set_yscale("log")  # a run that came to a standstill is ten times the others
    axes.legend(**BESIDE)
    return figure


def _budgets(study: Study, table: list[Row]) -> Figure | None:
    """What the arms of each curve reach against the attention that they spend, a panel for each text."""
    names = list(dict.fromkeys(curve for arm in study.arms for curve in arm.curves))
    if not names:
        return None
    measure = measure_of(table[0])
    texts = [None, *table[0]["texts"]]
    figure = Figure(figsize=(7, 4 * len(texts)))
    panels: list[Axes] = list(figure.subplots(len(texts), 1, sharex=True, squeeze=False)[:, 0])
    for axes, text in zip(panels, texts, strict=True):
        for name, marker in zip(names, cycle(MARKERS), strict=False):
            points = [row for arm, row in zip(study.arms, table, strict=True) if name in arm.curves]
            points = sorted((on_text(row, text) for row in points), key=lambda row: row["attention_ratio"]["mean"])
            axes.errorbar(
                [row["attention_ratio"]["mean"] for row in points],
                [row[measure]["mean"] for row in points],
                yerr=[row[measure]["deviation"] for row in points],
                marker=marker,
                capsize=2,
                label=name,
            )
        axes.set(title=text or "test split", ylabel=measure)
        axes.legend(frameon=False)
    panels[-1].set_xlabel("attention FLOPs, to full attention")
    return figure
