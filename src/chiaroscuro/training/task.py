"""What a run is trained on and judged by: language modelling, recall, or classifying sequences.

Shapes: B batch, T tokens.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from chiaroscuro.data import (
    LONGEST_EXPRESSION,
    SPLITS,
    Corpus,
    LabelledSequences,
    RecallExamples,
    Sample,
    TokenWindows,
    check_length,
    encode,
    generate_recall,
    load_corpus,
    load_labelled,
    load_other_text,
    load_tokenizer,
    pad_batch,
    token_bytes,
    train_tokenizer,
)
from chiaroscuro.data.recall import pairs_of
from chiaroscuro.evaluation import Evaluation, evaluate, evaluate_classifier, evaluate_recall, unigram_perplexity
from chiaroscuro.modeling import ChiarConfig, ChiarForCausalLM, ChiarForSequenceClassification
from chiaroscuro.training.plan import TrainingPlan
from chiaroscuro.training.trainer import RoutingTrainer

W = TypeVar("W", TokenWindows, RecallExamples)


class Task(ABC):
    """The data of a task, encoded, and how a model for it is built and measured.

    examples: per split what the Trainer takes. collate: makes a batch of them, None for the Trainer's own way.
    """

    collate: Callable[[list[dict[str, Tensor]]], dict[str, Tensor]] | None = None

    def __init__(
        self,
        plan: TrainingPlan,
        tokenizer: PreTrainedTokenizerFast,
        examples: Mapping[str, Dataset[dict[str, Tensor]]],
    ):
        self.plan = plan
        self.tokenizer = tokenizer
        self.examples = examples

    @abstractmethod
    def build(self, config: ChiarConfig) -> ChiarForCausalLM | ChiarForSequenceClassification:
        """A model for the task, freshly initialised."""

    @abstractmethod
    def measure(self, model: Any, split: str, show_progress: bool = False) -> Evaluation:
        """How well the model does on a split, or on one of the further texts."""

    @abstractmethod
    def by_chance(self) -> tuple[str, float]:
        """What can be had on the test split without a model, in words and as a number."""

    @abstractmethod
    def stored(self) -> Iterator[tuple[str, Sequence[np.ndarray]]]:
        """All data that models are trained and measured on, part by part: splits, and further texts."""

    @abstractmethod
    def sample(self, split: str, tokens: int) -> Sample:
        """What a model is given of a split, or of a further text, spread evenly over it, that has so many tokens, or
        all."""

    def trainer(self, **arguments: Any) -> RoutingTrainer:
        """What trains a model for the task; `arguments` as transformers' Trainer takes them."""
        return RoutingTrainer(**arguments)

    def digests(self) -> dict[str, str]:
        """A hash of each part of the data, as it is encoded."""
        found = {}
        for part, arrays in self.stored():
            digest = hashlib.sha256()
            for array in arrays:
                digest.update(np.ascontiguousarray(array).data)
            found[part] = digest.hexdigest()
        return found

    def fields(self) -> dict[str, Any]:
        """Fields of the configuration that follow from the data."""
        special = ("bos_token_id", "eos_token_id", "pad_token_id")
        return {"vocab_size": len(self.tokenizer)} | dict.fromkeys(special, self.tokenizer.eos_token_id)

    def calibration_text(self, tokens: int = 4096) -> Sample:
        """Of the validation text as it is measured, what has so many tokens, or all of it."""
        return self.sample("validation", tokens)


class _OfWindows(Task, Generic[W]):
    """windows: the data as windows of tokens without padding, per split, and of each further text of the plan's
    `test_on`."""

    def __init__(self, plan: TrainingPlan, tokenizer: PreTrainedTokenizerFast, windows: dict[str, W]):
        super().__init__(plan, tokenizer, windows)
        self.windows: dict[str, W] = windows

    def stored(self) -> Iterator[tuple[str, Sequence[np.ndarray]]]:
        for part, windows in self.windows.items():
            yield part, (windows.stored,)

    def sample(self, split: str, tokens: int) -> Sample:
        windows = self.windows[split]
        return windows.spread(-(-tokens // windows.length)), None


class LanguageModelling(_OfWindows[TokenWindows]):
    """Predict each token of a corpus from those before it. corpus: in the place of the plan's."""

    def __init__(self, plan: TrainingPlan, corpus: Corpus | None = None):
        corpus = corpus or load_corpus(plan.data)
        further = {name: load_other_text(source) for name, source in plan.test_on.items()}
        if plan.tokenizer is not None:
            tokenizer = load_tokenizer(Path(plan.tokenizer))
        else:
            tokenizer = train_tokenizer(corpus.splits["train"], plan.vocab_size)
        self.tokens = encode(corpus, tokenizer)
        held_out = None if plan.eval_tokens is None else -(-plan.eval_tokens // (plan.seq_len - 1))
        counts = {"train": None, "validation": held_out, "test": held_out}
        windows = {split: TokenWindows(self.tokens[split], plan.seq_len, counts[split]) for split in SPLITS}
        for name, text in further.items():
            only_test = Corpus(text.name, {"test": text.splits["test"]})
            windows[name] = TokenWindows(encode(only_test, tokenizer)["test"], plan.seq_len)
        super().__init__(plan, tokenizer, windows)

    def build(self, config: ChiarConfig) -> ChiarForCausalLM:
        return ChiarForCausalLM(config)

    def measure(self, model: ChiarForCausalLM, split: str, show_progress: bool = False) -> Evaluation:
        return evaluate(model, self.windows[split], token_bytes(self.tokenizer), show_progress=show_progress)

    def by_chance(self) -> tuple[str, float]:
        perplexity = unigram_perplexity(self.tokens["train"], self.windows["test"], len(self.tokenizer))
        return "perplexity of a unigram model", perplexity


class Recall(_OfWindows[RecallExamples]):
    """Give each key the value that it came with, in generated examples of the plan's length and vocabulary."""

    def __init__(self, plan: TrainingPlan):
        tokenizer, examples = generate_recall(plan.seq_len, plan.vocab_size)
        super().__init__(plan, tokenizer, examples)

    def build(self, config: ChiarConfig) -> ChiarForCausalLM:
        return ChiarForCausalLM(config)

    def measure(self, model: ChiarForCausalLM, split: str, show_progress: bool = False) -> Evaluation:
        return evaluate_recall(model, self.windows[split], show_progress=show_progress)

    def by_chance(self) -> tuple[str, float]:
        return "accuracy of a guess among the values of the example", 1 / pairs_of(self.plan.seq_len)


class Classification(Task):
    """Name the label of a sequence cut to the length of the plan's windows. `tokenizer` goes before the plan's. Raises
    ValueError where a part of the sequences says nothing of the whole."""

    collate = staticmethod(pad_batch)

    def __init__(self, plan: TrainingPlan, tokenizer: PreTrainedTokenizerFast | None = None):
        if tokenizer is None and plan.tokenizer is not None:
            tokenizer = load_tokenizer(Path(plan.tokenizer))
        check_length(plan.task, LONGEST_EXPRESSION.get(plan.task, 0), plan.seq_len)  # before they are generated
        data = load_labelled(plan.task, plan.data, tokenizer, plan.vocab_size)
        end = data.tokenizer.eos_token_id
        self.num_labels = data.num_labels
        self.sequences = {
            split: LabelledSequences(data.tokens[split], data.labels[split], end, plan.seq_len) for split in SPLITS
        }
        super().__init__(plan, data.tokenizer, self.sequences)
        check_length(plan.task, max(sequences.longest for sequences in self.sequences.values()), plan.seq_len)

    def stored(self) -> Iterator[tuple[str, Sequence[np.ndarray]]]:
        for split, sequences in self.sequences.items():
            yield split, (sequences.tokens, sequences.labels)

    def sample(self, split: str, tokens: int) -> Sample:
        batch = pad_batch(self.sequences[split].spread(tokens))
        return batch["input_ids"], batch["attention_mask"]

    def fields(self) -> dict[str, Any]:
        return super().fields() | {"num_labels": self.num_labels}

    def build(self, config: ChiarConfig) -> ChiarForSequenceClassification:
        return ChiarForSequenceClassification(config)

    def measure(self, model: ChiarForSequenceClassification, split: str, show_progress: bool = False) -> Evaluation:
        return evaluate_classifier(model, self.sequences[split], show_progress=show_progress)

    def by_chance(self) -> tuple[str, float]:
        commonest = torch.bincount(torch.from_numpy(np.array(self.sequences["train"].labels))).argmax()
        return "accuracy of the commonest label", float((self.sequences["test"].labels == int(commonest)).mean())
