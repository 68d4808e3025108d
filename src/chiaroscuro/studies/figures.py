"""The pictures of a study: training curves, where the tokens went while it trained, and quality against cost."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chiaroscuro.studies.study import Study
from chiaroscuro.studies.table import Row, best_runs, measure_of, on_text

MARKERS = "osD^v<>PX*hd"


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
    for results in own.values():
        steps = [line["step"] for line in results[0]["curve"]]
        losses = [[line["loss"] for line in result["curve"]] for result in results]
        low, high = [min(each) for each in zip(*losses, strict=True)], [max(each) for each in zip(*losses, strict=True)]
        (line,) = axes.plot(steps, [statistics.mean(each) for each in zip(*losses, strict=True)])
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="step", ylabel="training loss")
    axes.legend(axes.lines, own, frameon=False)
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
    """What each arm reaches on the test split against the FLOPs it executes, with the deviation over seeds."""
    measure = measure_of(table[0])
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for index, row in enumerate(table):
        axes.errorbar(
            row["executed_ratio"]["mean"],
            row[measure]["mean"],
            yerr=row[measure]["deviation"],
            marker=MARKERS[index % len(MARKERS)],
            linestyle="none",
            label=row["arm"],
        )
    axes.set(xlabel="executed FLOPs, to full attention", ylabel=measure)
    axes.legend(frameon=False)
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
        for name, marker in zip(names, MARKERS, strict=False):
            points = [row for arm, row in zip(study.arms, table, strict=True) if name in arm.curves]
            points.sort(key=lambda row: row["attention_ratio"]["mean"])
            reached = [on_text(row, text)[measure] for row in points]
            axes.errorbar(
                [row["attention_ratio"]["mean"] for row in points],
                [each["mean"] for each in reached],
                yerr=[each["deviation"] for each in reached],
                marker=marker,
                capsize=2,
                label=name,
            )
        axes.set(title=text or "test split", ylabel=measure)
        axes.legend(frameon=False)
    panels[-1].set_xlabel("attention FLOPs, to full attention")
    return figure
