"""Looking at what a model does with a text, and whether it can be trusted."""

from chiaroscuro.analysis.audit import Finding, audit
from chiaroscuro.analysis.render import png, terminal
from chiaroscuro.analysis.routing import LayerRoute, TextRoute, route_text
from chiaroscuro.analysis.subject import subject
from chiaroscuro.analysis.token_figure import draw_tokens
from chiaroscuro.analysis.tokens import Sample, sample, study_tokens
from chiaroscuro.analysis.words import word_classes

__all__ = [
    "Finding",
    "LayerRoute",
    "Sample",
    "TextRoute",
    "audit",
    "draw_tokens",
    "png",
    "route_text",
    "sample",
    "study_tokens",
    "subject",
    "terminal",
    "word_classes",
]
