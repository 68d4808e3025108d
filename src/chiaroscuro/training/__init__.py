"""Training runs and the folders they leave."""

from chiaroscuro.training.compare import compare
from chiaroscuro.training.folder import Run, load_run, new_run_folder, read_json, versions, write_json
from chiaroscuro.training.mixed import prepare
from chiaroscuro.training.plan import TrainingPlan
from chiaroscuro.training.run import train
from chiaroscuro.training.task import LanguageModelling, Task
from chiaroscuro.training.trainer import Diverged

__all__ = [
    "Diverged",
    "LanguageModelling",
    "Run",
    "Task",
    "TrainingPlan",
    "compare",
    "load_run",
    "new_run_folder",
    "prepare",
    "read_json",
    "train",
    "versions",
    "write_json",
]
