"""Training runs and the folders they leave."""

from chiaroscuro.training.compare import compare
from chiaroscuro.training.folder import Run, load_run, new_run_folder, read_json, write_json
from chiaroscuro.training.plan import TrainingPlan
from chiaroscuro.training.run import Text, load_text, train

__all__ = [
    "Run",
    "Text",
    "TrainingPlan",
    "compare",
    "load_run",
    "load_text",
    "new_run_folder",
    "read_json",
    "train",
    "write_json",
]
