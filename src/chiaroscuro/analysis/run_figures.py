"""How a run was trained, in figures: loss, shares and utilisation entropy by step, entropies against noise.

Shapes: B batch, T tokens.
"""

import json
import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from chiaroscuro.modeling import ChiarForCausalLM, ChiarForSequenceClassification
from chiaroscuro.ops import noise_deviation, noise_entropy
from chiaroscuro.routing import starving
from chiaroscuro.training import METRICS, Run, task_of

_INK = ("#1F2A44", "#C2410C", "#2E7D5B", "#7C5CBF", "#8A6D1D", "#0E7490")
_DASHES = ("-", "--", ":", "-.")


def figures_of_run(run: Run, alone: AbstractContextManager[None] | None = None) -> dict[str, Figure]:
    """`training_figures`, and as "entropies" the `entropy_figure` of its validation text where that is at hand.

    alone: entered while the model runs, where others use it too.
    """
    figures = training_figures(run.folder)
    try:
        text = task_of(run).calibration_text()
    except (ValueError, OSError):  # the data may be elsewhere; the rest is worth showing
        return figures
    with alone or nullcontext():
        entropies = entropy_figure(run.model, *text)
    return figures if entropies is None else figures | {"entropies": entropies}


def training_figures(folder: Path) -> dict[str, Figure]:
    """By name, what `metrics.jsonl` of a run tells: "loss", and where the model routes "shares" and "utilisation".

    Raises ValueError when the file is missing or damaged, or holds no logs.
    """
    lines = _logs(folder / METRICS)
    figures = {"loss": _loss(lines)}
    if "routing" in lines[0]:
        figures |= {"shares": _shares(lines), "utilisation": _utilisation(lines)}
    return figures


@torch.no_grad()
def entropy_figure(
    model: ChiarForCausalLM | ChiarForSequenceClassification, ids_BT: Tensor, mask_BT: Tensor | None = None
) -> Figure | None:
    """The entropies that each layer with a choice sees on `ids_BT`, with those of noise; None where no layer has one.
    Of padding, which the mask tells, nothing is shown.

    The entropies of white noise are approximately normal.
    """
    traces = model.model(ids_BT, attention_mask=mask_BT, use_cache=False, output_routing=True).routing
    if not traces:
        return None
    D = model.config.hidden_size
    expected, deviation = noise_entropy(D), noise_deviation(D)
    figure = Figure(figsize=(7, 1.0 + 1.7 * len(traces)), layout="constrained")
    panels: list[Axes] = list(figure.subplots(len(traces), 1, sharex=True, squeeze=False)[:, 0])
    for axes, trace in zip(panels, traces, strict=True):
        values = (trace.entropy.flatten() if mask_BT is None else trace.entropy[mask_BT.bool()]).tolist()
        axes.hist(values, bins=60, density=True, color="#E0A33E", label=f"layer {trace.layer + 1}")
        noise = np.linspace(expected - 4 * deviation, expected + 4 * deviation, 200)
        axes.plot(noise, [NormalDist(expected, deviation).pdf(x) for x in noise], color=_INK[0], label="white noise")
        axes.set(ylabel="density")
        axes.legend(frameon=False, fontsize=8)
    panels[-1].set_xlabel("spectral entropy")
    return figure


def _logs(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        logs = [line for line in lines if "loss" in line and "step" in line]
        alike = len({_operators(line) for line in logs}) <= 1
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r})") from error
    if not alike:
        raise ValueError(f"{path} is damaged (its lines tell of different layers or operators)")
    if not logs:
        raise ValueError(f"{path} holds no logs of training")
    return logs


def _operators(log: dict[str, Any]) -> tuple[tuple[Any, ...], ...]:
    """By layer what a log tells of, in its order. Raises any error of a lookup where something else than numbers is in
    their place."""
    routing, entropies = log.get("routing", {}), log.get("utilisation_entropy", {})
    shares = [share for operators in routing.values() for share in operators.values()]
    for number in (log["step"], log["loss"], *shares, *(entropies[layer] for layer in routing)):
        if not isinstance(number, int | float):
            raise TypeError(f"{number!r} is no number")
    if any(len(operators) < 2 for operators in routing.values()):
        raise ValueError("a layer without a choice")
    return tuple((int(layer), *operators) for layer, operators in routing.items())


def _loss(lines: list[dict[str, Any]]) -> Figure:
    figure, axes = _panel("training loss")
    axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], color=_INK[0])
    return figure


def _shares(lines: list[dict[str, Any]]) -> Figure:
    """Of every operator of every layer with a choice."""
    figure, axes = _panel("share of the tokens")
    for number, (layer, shares) in enumerate(lines[0]["routing"].items()):
        for dash, operator in zip(_DASHES, shares, strict=False):
            values = [line["routing"][layer][operator] for line in lines]
            label = f"layer {int(layer) + 1}: {operator}"
            axes.plot(_steps(lines), values, dash, color=_INK[number % len(_INK)], label=label)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _utilisation(lines: list[dict[str, Any]]) -> Figure:
    """Entropy of the shares of each layer, as a part of the largest it can have; crosses where an operator starves."""
    figure, axes = _panel("utilisation entropy, of ln O")
    for number, (layer, operators) in enumerate(lines[0]["routing"].items()):
        ink, name = _INK[number % len(_INK)], f"layer {int(layer) + 1}"
        values = [line["utilisation_entropy"][layer] / math.log(len(operators)) for line in lines]
        axes.plot(_steps(lines), values, color=ink, label=name)
        shares = [torch.tensor(list(line["routing"][layer].values())) for line in lines]
        collapsed = [bool(starving(share, tuple(operators))) for share in shares]
        if any(collapsed):
            crosses = np.where(collapsed, values, np.nan)
            axes.plot(_steps(lines), crosses, "x", color=ink, label=f"{name}: collapsed, an operator starves")
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _panel(label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes: Axes = figure.subplots()
    axes.set(xlabel="step", ylabel=label)
    return figure, axes


def _steps(lines: list[dict[str, Any]]) -> list[int]:
    return [line["step"] for line in lines]
