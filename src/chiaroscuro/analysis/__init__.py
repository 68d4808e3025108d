"""Looking at what a model does with a text, and whether it can be trusted."""

from chiaroscuro.analysis.audit import Finding, audit
from chiaroscuro.analysis.html import COLOURINGS, Colouring, fragment, page
from chiaroscuro.analysis.render import png, terminal
from chiaroscuro.analysis.routing import Force, LayerRoute, Reading, Spent, TextRoute, next_tokens, route_text
from chiaroscuro.analysis.run_figures import entropy_figure, figures_of_run, training_figures
from chiaroscuro.analysis.subject import subject
from chiaroscuro.analysis.token_figure import draw_tokens
from chiaroscuro.analysis.tokens import Sample, sample, study_tokens
from chiaroscuro.analysis.words import word_classes
from chiaroscuro.analysis.writing import Written, sampling, write_text

__all__ = [
    "COLOURINGS",
    "Colouring",
    "Finding",
    "Force",
    "LayerRoute",
    "Reading",
    "Sample",
    "Spent",
    "TextRoute",
    "Written",
    "audit",
    "draw_tokens",
    "entropy_figure",
    "figures_of_run",
    "fragment",
    "next_tokens",
    "page",
    "png",
    "route_text",
    "sample",
    "sampling",
    "study_tokens",
    "subject",
    "terminal",
    "training_figures",
    "word_classes",
    "write_text",
]
