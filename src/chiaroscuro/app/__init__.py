"""The page: what models do with a text, with interventions, while writing, and while they were trained."""

from chiaroscuro.app.page import build
from chiaroscuro.app.serving import serve
from chiaroscuro.app.shelf import Shelf, last_runs

__all__ = ["Shelf", "build", "last_runs", "serve"]
