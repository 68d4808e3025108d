"""Training runs and the folders they leave."""

from chiaroscuro.training.compare import compare
from chiaroscuro.training.folder import (
    COMPARISON,
    METRICS,
    PLAN,
    RESULTS,
    Run,
    load_run,
    new_run_folder,
    versions,
    write_json,
)
from chiaroscuro.training.mixed import prepare, task_of
from chiaroscuro.training.plan import SMALL, TrainingPlan, sizes_of
from chiaroscuro.training.ranks import ranks
from chiaroscuro.training.run import Stopped, started_plan, train
from chiaroscuro.training.task import LanguageModelling, Task
from chiaroscuro.training.trainer import Diverged, NotSaved, ShareSchedule, ThresholdRefresh

__all__ = [
    "COMPARISON",
    "Diverged",
    "LanguageModelling",
    "METRICS",
    "NotSaved",
    "PLAN",
    "RESULTS",
    "Run",
    "SMALL",
    "ShareSchedule",
    "Stopped",
    "Task",
    "ThresholdRefresh",
    "TrainingPlan",
    "compare",
    "load_run",
    "new_run_folder",
    "prepare",
    "ranks",
    "sizes_of",
    "started_plan",
    "task_of",
    "train",
    "versions",
    "write_json",
]
