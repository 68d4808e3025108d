"""What is trained where nothing else is said."""

from pathlib import Path

import pytest

from chiaroscuro.training import TrainingPlan


@pytest.fixture
def plan(english: Path) -> TrainingPlan:
    return TrainingPlan(
        data=str(english),
        vocab_size=300,
        steps=8,
        batch_size=4,
        seq_len=33,
        warmup_steps=2,
        eval_tokens=1_000,
        fields={"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2},
    )
