"""Looking at what a model does with a text."""

from chiaroscuro.analysis.render import png, terminal
from chiaroscuro.analysis.routing import LayerRoute, TextRoute, route_text

__all__ = ["LayerRoute", "TextRoute", "png", "route_text", "terminal"]
