"""Looking at what a model does with a text."""

from chiaroscuro.analysis.render import png, terminal
from chiaroscuro.analysis.routing import LayerRoute, TextRoute, route_text
from chiaroscuro.analysis.token_figure import draw_tokens
from chiaroscuro.analysis.tokens import Sample, sample, study_tokens
from chiaroscuro.analysis.words import word_classes

__all__ = [
    "LayerRoute",
    "Sample",
    "TextRoute",
    "draw_tokens",
    "png",
    "route_text",
    "sample",
    "study_tokens",
    "terminal",
    "word_classes",
]
