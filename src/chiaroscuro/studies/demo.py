"""What `chiaroscuro compare` shows by one run, over several seeds and at two learning rates."""

from chiaroscuro.studies.study import Arm, Study
from chiaroscuro.training import SMALL, TrainingPlan

DEMO = Study(
    name="demo_seeds",
    question="The recipe `chiar` and its twin as the demo trains them: how much of what it shows is chance?",
    plan=TrainingPlan(steps=600, save_every=120, fields=dict(SMALL)),
    arms=(Arm("chiar", "chiar"), Arm("full attention", "full_attention", {"num_hidden_layers": 4})),
    learning_rates=(2e-3, 4e-3),
    seeds=tuple(range(4)),
)
