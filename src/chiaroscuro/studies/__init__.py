"""Studies: grids of training runs that answer a question, declared in a file each."""

from chiaroscuro.studies.ablation import ABLATION, CONTROLS
from chiaroscuro.studies.budgets import BUDGETS, RECALL
from chiaroscuro.studies.figures import draw
from chiaroscuro.studies.regime import IMDB, LISTOPS_FLAT, MIXED, SMALL_TEXT
from chiaroscuro.studies.report import report
from chiaroscuro.studies.runner import Places, run_study
from chiaroscuro.studies.smoke import SMOKE
from chiaroscuro.studies.study import Arm, Study, StudyRun
from chiaroscuro.studies.table import markdown, rows

STUDIES = {
    study.name: study for study in (SMOKE, CONTROLS, ABLATION, SMALL_TEXT, LISTOPS_FLAT, IMDB, MIXED, BUDGETS, RECALL)
}


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
    "report",
    "rows",
    "run_study",
    "study_named",
]
