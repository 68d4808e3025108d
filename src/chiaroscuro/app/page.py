"""The layout of the page, and which answer each control asks for."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from chiaroscuro.analysis import COLOURINGS
from chiaroscuro.app import answers
from chiaroscuro.app.answers import AS_ROUTED, NOBODY, Change
from chiaroscuro.app.shelf import Shelf
from chiaroscuro.mixers import operator_names

EXAMPLES = [
    "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the slings and arrows of "
    "outrageous fortune, or to take arms against a sea of troubles.",
    "the the the the the the the the. A rose is a rose is a rose is a rose.",
    "KING RICHARD.\nA horse, a horse! My kingdom for a horse!\n\nCATESBY.\nWithdraw, my lord.",
    "In 1906, Dr. Amélie O'Brien-Nakamura paid £3,417.50 for <b>seven</b> signed copies of 'Zarathustra' 🙂.",
]
TITLE = "# chiaroscuro\nWhere a transformer spends its attention. Darker: more expensive."
FIGURES = ("loss", "shares", "utilisation", "entropies")
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = ".gradio-container { max-width: 1100px !important; } footer { display: none !important; }"


def build(shelf: Shelf, note: str = "") -> gr.Blocks:
    """The page for the runs on a shelf. note: a line about them."""
    with gr.Blocks(title="chiaroscuro", analytics_enabled=False) as page:
        gr.Markdown(TITLE + (f"\n\n{note}" if note else ""))
        with gr.Row():
            run = gr.Dropdown(shelf.names, value=shelf.names[0], label="Run", elem_id="run")
            beside = gr.Dropdown([NOBODY, *shelf.names], value=NOBODY, label="Beside it", elem_id="beside")
        with gr.Tab("Read"):
            _reading(shelf, page, run, beside)
        with gr.Tab("Write"):
            _writing(shelf.again(), run, beside)
        with gr.Tab("Training"):
            _training(shelf, run)
    return page.queue(max_size=64)


def _reading(shelf: Shelf, page: gr.Blocks, run: gr.Dropdown, beside: gr.Dropdown) -> None:
    text = gr.Textbox(EXAMPLES[0], lines=4, max_lines=12, label="Text", elem_id="text")
    gr.Examples(EXAMPLES, text, label="Examples")
    with gr.Row():
        by = gr.Radio(list(COLOURINGS), value=COLOURINGS[0], label="Coloured by", elem_id="by")
        go = gr.Button("Read", variant="primary", elem_id="read")
    with gr.Accordion("Intervene", open=False, elem_id="intervene"):
        with gr.Row():
            own = gr.Checkbox(True, label="The model's own share", elem_id="own")
            share = gr.Slider(
                0, 100, value=50, step=1, label="Share of tokens to the last operator, %", elem_id="share"
            )
        with gr.Row():
            layer = gr.Number(1, label="Layer", precision=0, minimum=1, elem_id="layer")
            token = gr.Number(0, label="Token (0: all)", precision=0, minimum=0, elem_id="token")
            names = [AS_ROUTED, *operator_names()]
            operator = gr.Dropdown(names, value=AS_ROUTED, label="Force it to", elem_id="operator")
        draw = gr.Button("Quality against compute", elem_id="draw")
        plot = gr.Plot(show_label=False)
    with gr.Row():
        first, second = _html("first"), _html("second", visible=False)

    def look(run: str, beside: str, text: str, by: Any, own: bool, share: float, *forced: Any) -> tuple[str, Any]:
        change = Change(None if own else share, *forced)
        one, other = (answers.read(shelf, name, text, by, change) for name in (run, beside))
        return one, gr.HTML(other, visible=beside != NOBODY)

    def plotted(run: str, text: str) -> Any:
        try:
            return answers.curve(shelf, run, text)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    def slide(run: str, beside: str, text: str, by: Any, own: bool, *changed: Any) -> tuple[Any, ...]:
        """Moving the slider ends the model's own share."""
        return False, *look(run, beside, text, by, False, *changed)

    asked = [run, beside, text, by, own, share, layer, token, operator]
    changes = [go.click, text.submit, by.change, own.input, layer.change, token.change, operator.change]
    # Not queued: gradio answers what is queued on a stream, and closes it when nothing is waiting; a question at that
    # very moment gets no answer, and quick answers to quick questions meet that moment.
    once: dict[str, Any] = {"show_progress": "minimal", "trigger_mode": "always_last", "queue": False}
    gr.on([*changes, run.change, beside.change, page.load], look, asked, [first, second], api_name="look", **once)
    gr.on([share.input, share.release], slide, asked, [own, first, second], **once)
    draw.click(plotted, [run, text], plot, queue=False)


def _writing(shelf: Shelf, run: gr.Dropdown, beside: gr.Dropdown) -> None:
    """On a shelf of its own: a text takes long to write, and who reads shall neither wait for it nor change it."""
    prompt = gr.Textbox("To be, or not to be", lines=2, label="Go on from", elem_id="prompt")
    with gr.Row():
        tokens = gr.Slider(1, 300, value=80, step=1, label="Tokens", elem_id="tokens")
        temperature = gr.Slider(
            0, 1.5, value=0.8, step=0.05, label="Temperature (0: the likeliest)", elem_id="temperature"
        )
        go, stop = gr.Button("Write", variant="primary", elem_id="write"), gr.Button("Stop", elem_id="stop")
    speed = gr.Markdown(elem_id="speed")
    with gr.Row():
        first, second = _html("written"), _html("written-beside", visible=False)

    def write(run: str, beside: str, prompt: str, tokens: int, temperature: float) -> Iterator[tuple[Any, Any, str]]:
        html, told = "", ""
        yield "", gr.HTML("", visible=beside != NOBODY), ""
        for html, told in answers.write(shelf, run, prompt, tokens, temperature):
            yield html, gr.skip(), told
        for other, also in answers.write(shelf, beside, prompt, tokens, temperature):
            yield html, other, f"{told}; {also}" if also else told

    asked = [run, beside, prompt, tokens, temperature]
    event = gr.on([go.click, prompt.submit], write, asked, [first, second, speed], show_progress="hidden")
    stop.click(None, cancels=event)


def _training(shelf: Shelf, run: gr.Dropdown) -> None:
    go = gr.Button("Show the figures of this run", elem_id="figures")
    told = _html("told")
    plots = [gr.Plot(label=name, visible=False) for name in FIGURES]

    def show(run: str) -> list[Any]:
        try:
            figures, message = answers.training(shelf, run), ""
        except (ValueError, OSError) as error:
            figures, message = {}, answers.told(str(error))
        return [message, *(gr.Plot(figures.get(name), visible=name in figures) for name in FIGURES)]

    go.click(show, run, [told, *plots], queue=False)


def _html(elem_id: str, visible: bool = True) -> gr.HTML:
    """Without gradio's own style, which in dark mode would write light on the white ground of the rows."""
    return gr.HTML(elem_id=elem_id, visible=visible, apply_default_css=False)
