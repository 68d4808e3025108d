"""Training runs and the folders they leave."""

from chiaroscuro.training.compare import compare
from chiaroscuro.training.folder import Run, load_run, new_run_folder, read_json, write_json
from chiaroscuro.training.plan import TrainingPlan
from chiaroscuro.training.run import train
from chiaroscuro.training.task import Task, prepare
from chiaroscuro.training.trainer import Diverged

__all__ = [
    "Diverged",
    "Run",
    "Task",
    "TrainingPlan",
    "compare",
    "load_run",
    "new_run_folder",
    "prepare",
    "read_json",
    "train",
    "write_json",
]
