"""What a training run is told: the recipe, the text, and the budget."""

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

import torch

from chiaroscuro.data import SPLITS, TASKS
from chiaroscuro.modeling import ChiarConfig
from chiaroscuro.modeling.recipes import recipe_named

LOGS_PER_RUN = 50
# A model that learns something of a play in a minute on two cores.
SMALL = {"hidden_size": 128, "num_hidden_layers": 5, "num_attention_heads": 4}


@dataclass(frozen=True)
class TrainingPlan:
    """One run. Raises ValueError for numbers that cannot be trained with.

    task: "lm", language modelling; "recall", multi-query associative recall; or one of `chiaroscuro.data.TASKS`,
        classification.
    data: a corpus as `chiaroscuro.data.load_corpus` takes it, or the source of the task's data, where it is not
        generated.
    tokenizer: a folder with one, or None to train a byte-level BPE of `vocab_size` entries on the training text.
    steps: optimiser steps of `batch_size` windows of `seq_len` tokens. The learning rate rises over `warmup_steps`, or
        a tenth of them, then falls by a cosine to a hundredth.
    eval_tokens: about how many tokens of each held-out split a language model is measured on, spread evenly over it;
        None for all.
    mixed: further tasks by name, with the source of each one's data: at a quarter of the steps a batch of one of them,
        drawn by the step, is added to that of the language model.
    test_on: further texts by name, with the source of each, that a language model is measured on once it is trained
        (`chiaroscuro.data.load_other_text`).
    dense_steps: over so many steps the share of tokens that attend is lowered evenly from all to the share that
        the configuration gives (`chiaroscuro.training.DenseStart`).
    save_every: steps between checkpoints, None for none.
    bf16: products in bfloat16, weights and optimiser in float32 (mixed precision).
    fields: fields of `ChiarConfig` that differ from the recipe's; where neither gives a size, it is that of a small
        model.
    """

    recipe: str = "chiar"
    task: str = "lm"
    data: str = "shakespeare"
    tokenizer: str | None = None
    vocab_size: int = 2048
    seed: int = 0
    steps: int = 400
    batch_size: int = 16
    seq_len: int = 128
    learning_rate: float = 2e-3
    warmup_steps: int | None = None
    weight_decay: float = 0.01
    eval_tokens: int | None = None
    mixed: dict[str, str] = field(default_factory=dict)
    test_on: dict[str, str] = field(default_factory=dict)
    dense_steps: int = 0
    save_every: int | None = None
    bf16: bool = False
    fields: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, content: dict[str, Any], source: Path) -> Self:
        """A plan from what was written of one. Raises ValueError naming `source` for a field that is not known or not
        of its type."""
        kinds = get_type_hints(cls)
        for name, value in content.items():
            if name not in kinds or not _is_a(kinds[name], value):
                raise ValueError(f"{source} holds no plan of a run: {name} is {value!r}")
        return cls(**content)

    def __post_init__(self) -> None:
        recipe_named(self.recipe)
        if not self.data:
            raise ValueError("data is empty: name a source, or leave it out")
        for name in ("vocab_size", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("save_every", "eval_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        unknown = sorted(set(self.mixed) - set(TASKS))
        if unknown:
            raise ValueError(f"unknown further task {unknown[0]!r}; known ones: {', '.join(TASKS)}")
        if self.mixed and self.task != "lm":
            raise ValueError(f"only language modelling takes further tasks, not task {self.task!r}")
        if self.eval_tokens is not None and self.task != "lm":
            raise ValueError(f"only a language model is measured on a part (eval_tokens), and not task {self.task!r}")
        if self.test_on and self.task != "lm":
            raise ValueError(f"only language models are tested on further texts, not task {self.task!r}")
        taken = sorted(set(self.test_on) & set(SPLITS))
        if taken:
            raise ValueError(f"a further text cannot be called {taken[0]!r}, which is a split")
        if self.seq_len < 2:
            raise ValueError(f"seq_len must be at least 2, got {self.seq_len}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.warmup < 0:
            raise ValueError(f"warmup_steps must not be negative, got {self.warmup_steps}")
        if not 0 <= self.dense_steps < self.steps:
            raise ValueError(f"dense_steps must lie in [0, {self.steps}), of all steps, got {self.dense_steps}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be a number from 0 on, got {self.weight_decay}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2^32), got {self.seed}")

    @property
    def warmup(self) -> int:
        """Steps over which the learning rate rises."""
        return max(1, self.steps // 10) if self.warmup_steps is None else self.warmup_steps

    @property
    def log_every(self) -> int:
        """Steps between two logs, some fifty in all. A log is a mean over the steps since the last one, so each
        checkpoint has to come with a log if the curve of a resumed run is to be that of a whole one."""
        most = max(1, self.steps // LOGS_PER_RUN)
        return most if self.save_every is None else max(n for n in range(1, most + 1) if self.save_every % n == 0)

    def warn_if_slow(self) -> None:
        """Warn where products in bfloat16 are wanted of a processor without instructions for them (on x86, AVX-512): a
        step then takes some ten times as long as in float32 (docs/log.md, 2026-11-30)."""
        on_processor = self.bf16 and not torch.cuda.is_available() and torch.backends.mkldnn.is_available()
        if on_processor and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            warnings.warn(
                "bf16: this processor has no instructions for bfloat16, and a step takes some ten times as long as "
                "without it",
                stacklevel=3,
            )

    def config(self, fields: dict[str, Any]) -> ChiarConfig:
        """The model's configuration, given the fields that follow from the data."""
        told = recipe_named(self.recipe).fields | self.fields
        sizes = {name: size for name, size in SMALL.items() if name not in told}
        if "layer_operators" in self.fields:  # which says how many layers there are
            sizes.pop("num_hidden_layers", None)
        config = ChiarConfig.from_recipe(self.recipe, **(sizes | fields | self.fields))
        if self.seq_len > config.max_position_embeddings:
            raise ValueError(
                f"windows of {self.seq_len} tokens are longer than the {config.max_position_embeddings} that recipe "
                f"{self.recipe!r} takes: use a smaller --seq-len"
            )
        if self.dense_steps and not config.gives_shares:
            raise ValueError(f"recipe {self.recipe!r} gives no share of the tokens that a dense start could lower")
        return config


def _is_a(kind: Any, value: Any) -> bool:
    """Whether a value has the type of an annotation, among those that a plan has."""
    if get_origin(kind) is dict:
        of_values = get_args(kind)[1]
        return isinstance(value, dict) and all(_is_a(of_values, each) for each in value.values())
    return kind is Any or isinstance(value, kind | int if kind is float else kind)
