"""A `TextRoute` as HTML: every layer a row of coloured tokens, with what is known of each on hover and, for
those without a pointer or without sight of the colours, in a list that unfolds.

Nothing is fetched: style and colours are in the page. Tokens are escaped, and kept apart from each other's direction of
writing.
"""

from html import escape
from statistics import fmean
from typing import Literal, get_args

from chiaroscuro.analysis.render import colour, describe, ink, visible
from chiaroscuro.analysis.routing import LayerRoute, Reading, Spent, TextRoute

Colouring = Literal["operator", "entropy", "loss"]
COLOURINGS: tuple[Colouring, ...] = get_args(Colouring)
BLANK = "#ffffff"  # of what has no value to be coloured by
LIGHTEST, DARKEST = (0xF3, 0xE9, 0xD2), (0x1F, 0x2A, 0x44)
STYLE = """
.route { font-family: system-ui, sans-serif; line-height: 1.35; color: #1a1a1a; background: #fff; padding: 0.5em; }
.route h3 { font-size: 0.9rem; font-weight: 600; margin: 0.9em 0 0.2em; color: inherit; }
.route .tokens { font-family: ui-monospace, monospace; font-size: 0.85rem; line-height: 1.75; margin: 0;
  overflow-wrap: anywhere; white-space: pre-wrap; }
.route bdi { padding: 0.1em 0; border-bottom: 1px solid #999; }
.route bdi:hover { outline: 2px solid #c2410c; }
.route table { border-collapse: collapse; font-size: 0.85rem; margin: 0.8em 0; }
.route td, .route th { text-align: left; padding: 0.15em 0.8em 0.15em 0; border-bottom: 1px solid #ddd; }
.route summary { cursor: pointer; font-size: 0.85rem; }
.route ol { font-size: 0.85rem; list-style: none; margin: 0.3em 0; padding: 0; }
.route .key { margin-top: 0.8em; }
.route .key span { padding: 0.1em 0.6em; margin-right: 0.6em; border: 1px solid #999; display: inline-block; }
"""


def fragment(route: TextRoute, by: Colouring = "operator", waiting: str = "") -> str:
    """The coloured rows, what they cost, and the style they need, for a page of any kind. waiting: a token at the end
    that was not read yet."""
    rows = "".join(_row(route, layer, by, waiting) for layer in route.layers)
    costs = _costs(route) if isinstance(route, Reading) else ""
    gate = "" if route.meta_gate is None else f"<p>MetaRouter gate of layer 1: mean {fmean(route.meta_gate):.3f}</p>"
    return f'<style>{STYLE}</style><div class="route">{_key(route, by)}{rows}{gate}{costs}</div>'


def page(route: TextRoute, title: str, by: Colouring = "operator") -> str:
    """A whole file."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{fragment(route, by)}</body></html>\n'


def _row(route: TextRoute, layer: LayerRoute, by: Colouring, waiting: str) -> str:
    shown = [escape(visible(token)) for token in route.tokens]
    told = [[escape(each) for each in _told(route, layer, index)] for index in range(len(shown))]
    tokens = "".join(map(_token, shown, _backgrounds(route, layer, by), told))
    if waiting:
        tokens += f"<bdi>{escape(visible(waiting))}</bdi>"
    row = f'<p class="tokens" data-layer="{layer.layer + 1}">{tokens}</p>'
    return f"<h3>{escape(describe(layer))}</h3>{row}{_list(layer, shown, told)}"


def _token(shown: str, background: str, told: list[str]) -> str:
    title = "\n".join(told)
    return f'<bdi style="background:{background};color:{ink(background)}" title="{title}">{shown}</bdi>'


def _list(layer: LayerRoute, shown: list[str], told: list[list[str]]) -> str:
    """What a pointer is told of each token, for keyboards and screen readers: folded, a line a token."""
    lines = "".join(f"<li><bdi>{token}</bdi> {', '.join(known)}</li>" for token, known in zip(shown, told, strict=True))
    return f"<details><summary>layer {layer.layer + 1}, token by token</summary><ol>{lines}</ol></details>"


def _backgrounds(route: TextRoute, layer: LayerRoute, by: Colouring) -> list[str]:
    if by == "entropy" and layer.entropy:
        return _shades(layer.entropy)
    if by == "loss" and isinstance(route, Reading) and route.loss:
        return [BLANK, *_shades(route.loss)]  # nothing comes before the first token
    if by == "operator":
        return [colour(layer.operators[index]) for index in layer.choice]
    return [BLANK] * len(route.tokens)


def _shades(values: list[float]) -> list[str]:
    """From the lightest for the least to the darkest for the largest."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    span = high - low or 1.0
    return [_shade((value - low) / span) for value in values]


def _shade(part: float) -> str:
    channels = (round(light + part * (dark - light)) for light, dark in zip(LIGHTEST, DARKEST, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def _told(route: TextRoute, layer: LayerRoute, index: int) -> list[str]:
    """What is known of a token in a layer."""
    told = [f"token {index + 1}: {layer.operators[layer.choice[index]]}"]
    if layer.entropy:
        told.append(f"entropy {layer.entropy[index]:.4f}")
        told.append(f"gate {layer.gate[index]:.3f}")
    if layer.thresholds:
        told.append("threshold " + ", ".join(f"{threshold:.4f}" for threshold in layer.thresholds))
    if isinstance(route, Reading) and route.loss and index:
        told.append(f"loss {route.loss[index - 1]:.2f} nats")
        told.append(f"rank {route.rank[index - 1]}")
    return told


def _key(route: TextRoute, by: Colouring) -> str:
    spans = "".join(
        f'<span style="background:{shade};color:{ink(shade)}">{escape(name)}</span>'
        for name, shade in _swatches(route, by)
    )
    return f'<p class="key">{spans}</p>'


def _swatches(route: TextRoute, by: Colouring) -> list[tuple[str, str]]:
    """What each colour means; also that of tokens which have nothing to be coloured by, and why they have not."""
    if by == "operator":
        return [(name, colour(name)) for name in route.operators]
    if by == "entropy":
        having = [bool(layer.entropy) for layer in route.layers]
        known, place, blank = any(having), "the layer", "" if all(having) else "a layer without a choice"
    else:
        known, place = isinstance(route, Reading) and bool(route.loss), "the text"
        blank = "the first token" if known or len(route.tokens) == 1 else "tokens are not predicted here"
    ends = [(f"lowest {by} of {place}", _shade(0.0)), (f"highest {by} of {place}", _shade(1.0))]
    return [*(ends if known else []), *([(f"no {by}: {blank}", BLANK)] if blank else [])]


def _costs(route: Reading) -> str:
    rows = [*_flops(route.spent).items()]
    if route.perplexity is not None:
        rows.insert(0, ("perplexity of this text", f"{route.perplexity:.2f}"))
    return "<table>" + "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows) + "</table>"


def _flops(spent: Spent) -> dict[str, str]:
    """FLOPs of a text beside those of full attention, in words."""
    return {
        "attention FLOPs": _beside(spent.attention, spent.full_attention),
        "all FLOPs, planned": _beside(spent.total, spent.full_total),
        "all FLOPs, executed": _beside(spent.executed, spent.full_total),
    }


def _beside(flops: float, full: float) -> str:
    return f"{flops / 1e6:.2f} million, {flops / full:.3f} of full attention, {(full - flops) / 1e6:+.2f} million saved"
