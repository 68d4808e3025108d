"""Pictures of a `TextRoute`: coloured tokens in the terminal and as a PNG.

The cheaper the operator, the lighter its colour, so that the picture is read the same in print and without colour
vision.
"""

import unicodedata
import warnings
from pathlib import Path
from statistics import fmean

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Group
from rich.text import Text

from chiaroscuro.analysis.routing import LayerRoute, TextRoute

PALETTE = {"none": "#F6F6F3", "dct": "#F3E9D2", "rbf": "#E0A33E", "window": "#6F84A8", "attention": "#1F2A44"}
OTHERS = ("#C9D6DF", "#8AA29E", "#5B6C8F", "#3D3B4F")
LIGHT_INK, DARK_INK = "#FFFFFF", "#1A1A1A"
FONT_SIZE = 8.0  # points
CHARACTER_WIDTH = 0.602 * FONT_SIZE / 72  # inches; the advance of DejaVu Sans Mono
LINE_HEIGHT = 0.2  # inches


def colour(operator: str) -> str:
    """Background of a token routed to `operator`; operators from elsewhere share the remaining shades."""
    return PALETTE.get(operator) or OTHERS[sum(operator.encode()) % len(OTHERS)]


def luminance(background: str) -> float:
    """Relative luminance as WCAG 2.2 defines it, from 0, black, to 1, white."""
    linear = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(background))
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2.2), from 1 to 21; text needs 4.5."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def ink(background: str) -> str:
    """Dark or light, whichever is better read on `background`."""
    return max((DARK_INK, LIGHT_INK), key=lambda each: contrast(each, background))


def visible(token: str) -> str:
    """The token with line ends and other control characters made visible and harmless."""
    shown = token.replace("\n", "⏎").replace("\t", "⇥")
    return "".join("·" if unicodedata.category(character).startswith("C") else character for character in shown)


def terminal(route: TextRoute) -> Group:
    """A legend, then each layer: its shares and mean entropy, and the text coloured by operator."""
    parts = [Text.assemble(*(piece for name in route.operators for piece in ((f" {name} ", _style(name)), "  ")))]
    for layer in route.layers:
        parts.append(Text(f"\n{describe(layer)}", style="bold"))
        line = Text()
        for token, choice in zip(route.tokens, layer.choice, strict=True):
            line.append(visible(token), _style(layer.operators[choice]))
        parts.append(line)
    if route.meta_gate is not None:
        parts.append(Text(f"\nMetaRouter gate of the first layer: mean {fmean(route.meta_gate):.3f}"))
    return Group(*parts)


def describe(layer: LayerRoute) -> str:
    """One line: the layer's number from 1, the share of each operator, and the entropy it saw."""
    shares = ", ".join(f"{name} {share:.0%}" for name, share in layer.shares.items())
    if not layer.entropy:
        return f"layer {layer.layer + 1}: {shares} (no choice)"
    low, high = min(layer.entropy), max(layer.entropy)
    return f"layer {layer.layer + 1}: {shares}; entropy {fmean(layer.entropy):.3f} ({low:.3f} to {high:.3f})"


def png(route: TextRoute, path: Path, width: int = 96) -> None:
    """Write the picture: a block per layer, lines of up to `width` characters, each token on its operator's colour."""
    lines = _lines([visible(token) for token in route.tokens], width)
    rows = 1 + len(route.layers) * (len(lines) + 2)
    columns = max(60, *(column + len(text) for line in lines for column, _, text in line))
    figure = Figure(figsize=((columns + 2) * CHARACTER_WIDTH, (rows + 1) * LINE_HEIGHT), dpi=150, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-1, columns + 1)
    axes.set_ylim(rows + 0.5, -0.5)
    axes.axis("off")

    def write(x: float, y: float, text: str, background: str = "#FFFFFF", weight: str = "normal") -> None:
        axes.text(
            x,
            y,
            text,
            family=["DejaVu Sans Mono", "DejaVu Sans"],
            fontsize=FONT_SIZE,
            color=ink(background),
            weight=weight,
            va="center_baseline",
            parse_math=False,
        )

    def box(x: float, y: float, text: str, operator: str) -> None:
        background = colour(operator)
        shape = Rectangle((x, y - 0.5), len(text), 1, facecolor=background, edgecolor="#999999", linewidth=0.3)
        axes.add_patch(shape)
        write(x, y, text, background)

    x = 0
    for operator in route.operators:
        box(x, 0.5, f" {operator} ", operator)
        x += len(operator) + 4
    y = 1
    for layer in route.layers:
        y += 1
        write(0, y, describe(layer), weight="bold")
        for line in lines:
            y += 1
            for column, index, text in line:
                box(column, y, text, layer.operators[layer.choice[index]])
        y += 1
    with warnings.catch_warnings():
        # A character that no font here has is drawn as an empty box, which says enough.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path)


def _lines(tokens: list[str], width: int) -> list[list[tuple[int, int, str]]]:
    """(column, token index, piece of text) per line; a token longer than what is left of a line goes on in the next."""
    lines: list[list[tuple[int, int, str]]] = [[]]
    column = 0
    for index, token in enumerate(tokens):
        if column and column + len(token) > width:
            lines.append([])
            column = 0
        for start in range(0, len(token), width):
            piece = token[start : start + width]
            lines[-1].append((column, index, piece))
            column += len(piece)
            if start + width < len(token):
                lines.append([])
                column = 0
    return lines


def _style(operator: str) -> str:
    return f"{ink(colour(operator))} on {colour(operator)}"
