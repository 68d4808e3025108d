"""Studies: grids of training runs that answer a question, declared in a file each."""

from chiaroscuro.studies.ablation import ABLATION, COLLAPSE, CONTROLS, RATES, VOCABULARY
from chiaroscuro.studies.budgets import ALTERNATIVES, BUDGETS, DEEPER, HALF, RECALL, REVIEWS
from chiaroscuro.studies.demo import DEMO
from chiaroscuro.studies.figures import draw
from chiaroscuro.studies.regime import IMDB, LISTOPS_FLAT, MIXED, SMALL_TEXT
from chiaroscuro.studies.report import render, render_finished, report
from chiaroscuro.studies.runner import Places, run_study
from chiaroscuro.studies.smoke import SMOKE
from chiaroscuro.studies.study import Arm, Study, StudyRun
from chiaroscuro.studies.table import markdown, rows

_OF_THE_PAPER = (CONTROLS, VOCABULARY, ABLATION, RATES, COLLAPSE, SMALL_TEXT, LISTOPS_FLAT, IMDB, MIXED)
_OURS = (DEMO, HALF, BUDGETS, ALTERNATIVES, REVIEWS, DEEPER, RECALL)
STUDIES = {study.name: study for study in (SMOKE, *_OF_THE_PAPER, *_OURS)}


def study_named(name: str) -> Study:
    """Raises ValueError listing the known studies."""
    if name not in STUDIES:
        raise ValueError(f"unknown study {name!r}; known studies: {', '.join(STUDIES)}")
    return STUDIES[name]


__all__ = [
    "STUDIES",
    "Arm",
    "Places",
    "Study",
    "StudyRun",
    "draw",
    "markdown",
    "render",
    "render_finished",
    "report",
    "rows",
    "run_study",
    "study_named",
]
