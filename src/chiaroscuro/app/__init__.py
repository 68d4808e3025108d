"""The page: what models do with a text, with interventions, while writing, and while they were trained."""

from chiaroscuro.app.page import CSS, THEME, build
from chiaroscuro.app.shelf import Shelf, last_runs

__all__ = ["CSS", "THEME", "Shelf", "build", "last_runs"]
