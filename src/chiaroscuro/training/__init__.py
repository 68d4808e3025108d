"""Training runs and the folders they leave."""

from chiaroscuro.training.compare import compare
from chiaroscuro.training.folder import RESULTS, Run, load_run, new_run_folder, read_json, versions, write_json
from chiaroscuro.training.mixed import prepare, task_of
from chiaroscuro.training.plan import TrainingPlan
from chiaroscuro.training.run import train
from chiaroscuro.training.task import LanguageModelling, Task
from chiaroscuro.training.trainer import Diverged, ShareSchedule

__all__ = [
    "RESULTS",
    "Diverged",
    "LanguageModelling",
    "Run",
    "ShareSchedule",
    "Task",
    "TrainingPlan",
    "compare",
    "load_run",
    "new_run_folder",
    "prepare",
    "read_json",
    "task_of",
    "train",
    "versions",
    "write_json",
]
