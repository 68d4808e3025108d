"""Training runs and the folders they leave."""

from chiaroscuro.training.compare import compare
from chiaroscuro.training.dense_start import DenseStart
from chiaroscuro.training.folder import (
    COMPARISON,
    METRICS,
    PLAN,
    RESULTS,
    Run,
    alone_in,
    load_run,
    new_run_folder,
    versions,
    write_json,
)
from chiaroscuro.training.mixed import prepare, task_of
from chiaroscuro.training.plan import SMALL, TrainingPlan
from chiaroscuro.training.ranks import ranks
from chiaroscuro.training.run import Stopped, recalibrate, started_plan, train
from chiaroscuro.training.task import LanguageModelling, Task
from chiaroscuro.training.trainer import Diverged, NotSaved, ThresholdRefresh

__all__ = [
    "COMPARISON",
    "DenseStart",
    "Diverged",
    "LanguageModelling",
    "METRICS",
    "NotSaved",
    "PLAN",
    "RESULTS",
    "Run",
    "SMALL",
    "Stopped",
    "Task",
    "ThresholdRefresh",
    "TrainingPlan",
    "alone_in",
    "compare",
    "load_run",
    "new_run_folder",
    "prepare",
    "ranks",
    "recalibrate",
    "started_plan",
    "task_of",
    "train",
    "versions",
    "write_json",
]
