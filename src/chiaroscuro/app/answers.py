"""What the page answers with: functions of what a visitor asks, which keep nothing of it.

Each answers in HTML or figures; what is wrong with a question, or with a run folder, is told in a line of HTML.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.figure import Figure

from chiaroscuro.analysis import (
    Colouring,
    Force,
    Reading,
    figures_of_run,
    fragment,
    next_tokens,
    route_text,
    write_text,
)
from chiaroscuro.app.shelf import Shelf
from chiaroscuro.data import encode_text
from chiaroscuro.modeling import ChiarForCausalLM
from chiaroscuro.training import Run

MOST_CHARACTERS, MOST_TOKENS = 20_000, 512
CURVE = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
LIKELIEST = 5
AS_ROUTED, NOBODY = "as routed", "nobody"


@dataclass(frozen=True)
class Change:
    """An intervention as a visitor asks for it. share: of the tokens, in per cent, None: the model's own. layer, token:
    from 1, a token of 0 for all; operator: its name, or AS_ROUTED."""

    share: float | None = None
    layer: int | None = 1
    token: int | None = 0
    operator: str = AS_ROUTED

    @property
    def fraction(self) -> float | None:
        return None if self.share is None else self.share / 100

    @property
    def force(self) -> list[Force]:
        if self.operator == AS_ROUTED:
            return []
        if self.layer is None:
            raise ValueError("which layer? give its number")
        return [Force(int(self.layer) - 1, int(self.token) - 1 if self.token else None, self.operator)]

    @property
    def nothing(self) -> bool:
        return self.share is None and self.operator == AS_ROUTED


def told(message: str) -> str:
    return f'<p role="status">{escape(message)}</p>'


def read(shelf: Shelf, name: str, text: str, by: Colouring, change: Change) -> str:
    """The coloured text, and what the change changed."""
    if name == NOBODY or not text:
        return ""
    try:
        with shelf.alone():
            run = shelf.take(name)
            text, notice = _cut(run, text)
            before = route_text(run.model, run.tokenizer, text)
            if change.nothing:
                return notice + fragment(before, by)
            after = route_text(run.model, run.tokenizer, text, change.fraction, change.force)
            changed = _difference(before, after) + _next(run, text, change, len(after.tokens))
            return notice + changed + fragment(after, by)
    except (ValueError, OSError) as error:
        return told(str(error))


def curve(shelf: Shelf, name: str, text: str) -> Figure:
    """Perplexity of a text against the FLOPs executed for it, relative to full attention's, at several shares. Raises
    ValueError for a classifier, for a text of one token, and for a model whose routers have no thresholds."""
    with shelf.alone():
        run = shelf.take(name)
        text, _ = _cut(run, text)
        routes = [route_text(run.model, run.tokenizer, text, share) for share in CURVE]
        own = route_text(run.model, run.tokenizer, text)
    if not routes[0].loss:
        raise ValueError("the curve needs a language model and a text of two tokens at least")
    points = [_place(each) for each in routes]
    if len({x for x, _ in points}) == 1:
        raise ValueError("no layer of this model decides by thresholds, so there is no curve")
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), "o-", color="#1F2A44", label="highest score first")
    for share, (x, y) in zip(CURVE, points, strict=True):
        axes.annotate(f"{100 * share:g}%", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.plot(*_place(own), "D", color="#C2410C", label="the model's own share")
    axes.margins(0.08, 0.1)  # for the words beside the points
    axes.set(xlabel="FLOPs executed, of full attention's", ylabel="perplexity of this text")
    axes.legend(frameon=False)
    return figure


def _place(reading: Reading) -> tuple[float, float]:
    return reading.spent.executed / reading.spent.full_total, reading.perplexity or math.nan


def write(shelf: Shelf, name: str, prompt: str, tokens: int, temperature: float) -> Iterator[tuple[str, str]]:
    """The text as it is written, and its speed in words."""
    if name == NOBODY:
        yield "", ""
        return
    try:
        run = shelf.take(name)
        if not isinstance(run.model, ChiarForCausalLM):
            raise ValueError(f"{name} holds a classifier, which does not write")
        if not prompt:
            raise ValueError("give it something to go on from")
        prompt, notice = _cut(run, prompt, room=tokens)
        for written in write_text(run.model, run.tokenizer, prompt, tokens, temperature):
            html = notice + fragment(written.route, waiting=written.waiting)
            yield html, f"{run.model.config.recipe}: {written.speed:.0f} tokens per second"
    except (ValueError, OSError) as error:
        yield told(str(error)), ""


def training(shelf: Shelf, name: str) -> dict[str, Figure]:
    """The figures of a run. Nobody waits for the data of one of them, which may be far away."""
    with shelf.alone():
        run = shelf.take(name)
    return figures_of_run(run, shelf.alone())


def _cut(run: Run, text: str, room: int = 0) -> tuple[str, str]:
    """What is read of a text, and a notice where that is not all. room: for so many tokens that are to be written, but
    for no more than half of what the model takes."""
    positions = run.model.config.max_position_embeddings
    limit = min(MOST_TOKENS, positions - min(room, positions // 2))
    shown = text[:MOST_CHARACTERS]
    spans = encode_text(run.tokenizer, shown, return_offsets_mapping=True)["offset_mapping"]
    if len(spans) > limit:
        shown = shown[: spans[limit - 1][1]]
        # A token that ends within a character makes one more of what is left of it.
        while len(encode_text(run.tokenizer, shown)["input_ids"]) > limit:
            shown = shown[:-1]
    if shown == text:
        return text, ""
    return shown, told(f"Cut after {len(shown):,} of {len(text):,} characters: the page reads {limit} tokens at most.")


def _difference(before: Reading, after: Reading) -> str:
    flips = sum(
        then != now
        for old, new in zip(before.layers, after.layers, strict=True)
        for then, now in zip(old.choice, new.choice, strict=True)
    )
    rows = [
        ("tokens sent elsewhere, all layers", "", str(flips)),
        (
            "FLOPs executed, of full attention's",
            *(f"{e.executed / e.full_total:.3f}" for e in (before.spent, after.spent)),
        ),
    ]
    if before.perplexity is not None and after.perplexity is not None:
        rows.append(("perplexity", f"{before.perplexity:.2f}", f"{after.perplexity:.2f}"))
    return _table(("", "as routed", "changed"), rows)


def _next(run: Run, text: str, change: Change, count: int) -> str:
    """What the model expects after the chosen token, or after the last one, before and after the change."""
    if not isinstance(run.model, ChiarForCausalLM):
        return ""
    place = int(change.token) - 1 if change.token else count - 1
    if not 0 <= place < count:
        raise ValueError(f"there is no token {place + 1}: the text has {count}")
    before = next_tokens(run.model, run.tokenizer, text, place)
    after = next_tokens(run.model, run.tokenizer, text, place, change.fraction, change.force)
    divergence = max(0.0, float((before.exp() * (before - after)).sum()))  # rounding may take it below
    likeliest = before.topk(LIKELIEST).indices.tolist()
    likeliest += [index for index in after.topk(LIKELIEST).indices.tolist() if index not in likeliest]
    rows = [
        (repr(str(run.tokenizer.decode([index]))), f"{math.exp(before[index]):.3f}", f"{math.exp(after[index]):.3f}")
        for index in likeliest
    ]
    head = f"after token {place + 1}; divergence {divergence:.4f} nats"
    return _table((head, "as routed", "changed"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    def row(kind: str, cells: tuple[str, ...]) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"

    return '<div class="route"><table>' + row("th", head) + "".join(row("td", each) for each in rows) + "</table></div>"
