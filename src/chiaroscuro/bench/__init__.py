"""Times against full attention and against the dense blend, measured side by side."""

from chiaroscuro.bench.case import Case, Sizes
from chiaroscuro.bench.cases import TARGETS, cases
from chiaroscuro.bench.measure import Measured, measure
from chiaroscuro.bench.plot import plot

__all__ = ["TARGETS", "Case", "Measured", "Sizes", "cases", "measure", "plot"]
