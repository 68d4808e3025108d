"""Sequences with a label each: IMDB reviews and ListOps expressions.

Shapes: T tokens of a sequence.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from chiaroscuro.data.corpus import SPLITS, Corpus
from chiaroscuro.data.imdb import load_imdb
from chiaroscuro.data.listops import LONGEST, LONGEST_FLAT, SYMBOLS, flat_expression, nested_expression, value
from chiaroscuro.data.tokenizer import END_OF_TEXT, symbol_tokenizer, train_tokenizer
from chiaroscuro.data.tokens import cached_array, encode

TASKS = ("imdb", "listops", "listops_flat")
GENERATED = ("recall", "listops", "listops_flat")
LONGEST_EXPRESSION = {"listops": LONGEST, "listops_flat": LONGEST_FLAT}  # symbols, which are one token at least
LISTOPS_SIZES = {"train": 96_000, "validation": 2_000, "test": 2_000}


@dataclass(frozen=True)
class LabelledData:
    """Per split the token ids of all sequences, each followed by the end-of-text token, and their labels."""

    tokenizer: PreTrainedTokenizerFast
    tokens: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    num_labels: int


def load_labelled(
    task: str, source: str, tokenizer: PreTrainedTokenizerFast | None = None, vocab_size: int = 8192
) -> LabelledData:
    """The data of a task, encoded with `tokenizer`. For "imdb" `source` is a folder or the hub's "imdb", and without a
    tokenizer one of `vocab_size` entries is trained on it; the ListOps tasks are generated and have symbols of their
    own.

    Raises ValueError for an unknown task and for data that cannot be read.
    """
    if task == "imdb":
        reviews = load_imdb(source)
        chosen = tokenizer or train_tokenizer(reviews.texts["train"], vocab_size)
        labels = {split: np.array(labels) for split, labels in reviews.labels.items()}
        return LabelledData(chosen, encode(Corpus(source, reviews.texts), chosen), labels, 2)
    if task in ("listops", "listops_flat"):
        data = generate_listops(task, LISTOPS_SIZES)
        return data if tokenizer is None else _in_words(data, tokenizer)
    raise ValueError(f"unknown task {task!r}; known tasks: lm, recall, {', '.join(TASKS)}")


def check_source(task: str, source: str | None) -> None:
    """Raises ValueError for data given to a task that is generated."""
    if task in GENERATED and source not in (None, task):
        raise ValueError(f"task {task!r} is generated and takes no data, but {source!r} was given")


def check_length(task: str, longest: int, length: int) -> None:
    """Raises ValueError where sequences of up to `longest` tokens would be cut to `length`, in tasks in which a part of
    a sequence does not have its label."""
    if task in GENERATED and longest > length:
        raise ValueError(
            f"expressions of {task} have up to {longest} tokens, and a part of one does not have its value: windows of "
            f"{length} are too short (--seq-len)"
        )


def generate_listops(task: str, sizes: dict[str, int], seed: int = 0) -> LabelledData:
    """`sizes` expressions of each split; the same for the same seed, and generated once."""
    tokens, labels = {}, {}
    for split in SPLITS:
        key = hashlib.sha256(f"{task} {split} {sizes[split]} {seed} version 1".encode()).hexdigest()
        tokens[split] = cached_array(key, partial(_expressions, task, sizes[split], f"{seed} {split}"))
        labels[split] = cached_array(key[::-1], partial(_values, tokens[split]))
    return LabelledData(symbol_tokenizer(SYMBOLS), tokens, labels, 10)


def _in_words(data: LabelledData, tokenizer: PreTrainedTokenizerFast) -> LabelledData:
    """The expressions written out, symbols parted by spaces, and encoded as text."""
    if tokenizer.get_vocab() == data.tokenizer.get_vocab():
        return data
    texts = {}
    for split, tokens in data.tokens.items():
        rows = np.split(tokens, np.flatnonzero(tokens == len(SYMBOLS)) + 1)[:-1]
        texts[split] = [" ".join(SYMBOLS[index] for index in row[:-1]) for row in rows]
    return LabelledData(tokenizer, encode(Corpus("listops", texts), tokenizer), data.labels, data.num_labels)


def _expressions(task: str, count: int, seed: str) -> Iterator[np.ndarray]:
    random = Random(seed)
    make = nested_expression if task == "listops" else flat_expression
    ids = {symbol: index for index, symbol in enumerate((*SYMBOLS, END_OF_TEXT))}
    for _ in range(count):
        yield np.array([ids[symbol] for symbol in (*make(random), END_OF_TEXT)], dtype=np.uint8)


def _values(tokens: np.ndarray) -> Iterator[np.ndarray]:
    """The label of each expression, from its symbols."""
    ends = np.flatnonzero(tokens == len(SYMBOLS))
    rows = np.split(tokens, ends + 1)[:-1]
    yield np.array([value([SYMBOLS[index] for index in row[:-1]]) for row in rows])


class LabelledSequences(Dataset[dict[str, Tensor]]):
    """Sequences cut to `length` tokens, with their labels. Raises ValueError when sequences and labels do not match in
    number, as when a text holds the end-of-text token itself."""

    def __init__(self, tokens: np.ndarray, labels: np.ndarray, end_of_text: int, length: int):
        self.tokens = tokens
        self.labels = labels
        self.length = length
        self.ends = np.flatnonzero(tokens == end_of_text)
        if len(self.ends) != len(labels):
            raise ValueError(f"{len(labels)} labels for {len(self.ends)} sequences: does a text hold {END_OF_TEXT}?")
        self.starts = np.concatenate(([0], self.ends[:-1] + 1))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, before it is cut."""
        return int((self.ends - self.starts).max(initial=0))

    def __len__(self) -> int:
        return len(self.labels)

    def spread(self, tokens: int) -> list[dict[str, Tensor]]:
        """Sequences at even distances that have about so many tokens together, or all."""
        per_sequence = (self.ends - self.starts).clip(max=self.length).mean()
        count = min(len(self), math.ceil(tokens / per_sequence))
        return [self[index * len(self) // count] for index in range(count)]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = self.starts[index]
        ids = self.tokens[start : min(self.ends[index], start + self.length)].astype(np.int64)
        return {"input_ids": torch.from_numpy(ids), "labels": torch.tensor(int(self.labels[index]))}


def pad_batch(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Sequences padded on the right to the longest of them, with the mask that says so."""
    ids = [example["input_ids"] for example in examples]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": torch.stack([example["labels"] for example in examples]),
    }
