"""A study of a few minutes: does the machinery work, and does anything learn?"""

from chiaroscuro.studies.study import Arm, Study
from chiaroscuro.training import TrainingPlan

SMOKE = Study(
    name="smoke",
    question="Does routing by entropy do better than at random after a minute of training? (Too short to tell.)",
    plan=TrainingPlan(
        data="shakespeare",
        vocab_size=1024,
        steps=150,
        batch_size=8,
        seq_len=128,
        warmup_steps=15,
        save_every=50,
        fields={"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4},
    ),
    arms=(
        Arm("full attention", "full_attention"),
        Arm("entropy", "spectral"),
        Arm("random", "spectral", {"router": "random"}),
    ),
    learning_rates=(2e-3, 6e-3),
    seeds=(0, 1),
)
