"""Multi-query associative recall, generated: pairs of keys and values, and behind them every key once more, to be
answered with its value (Arora et al., "Zoology", arXiv 2312.04927).

Shapes: E examples, T tokens of an example, P pairs, S places where a key can be asked for.
"""

import hashlib
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from chiaroscuro.data.tokenizer import symbol_tokenizer
from chiaroscuro.data.tokens import Windows, cached_array

NO_ANSWER = -100  # the label that cross-entropy leaves out
RECALL_SIZES = {"train": 100_000, "validation": 3_000, "test": 3_000}
POWER = 0.01  # of the law by which keys are asked for soon after the pairs
TOGETHER = 1000  # examples made at a time


class RecallExamples(Windows):
    """Examples of T tokens. labels are the tokens' own answers, moved as for text: the answer to a key that is asked
    for at t stands at t + 1, and -100 everywhere else. stored: of each example its tokens and then its labels."""

    def __init__(self, stored: np.ndarray, length: int):
        self.stored = stored
        self.length = length
        self.rows = stored.reshape(-1, 2, length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids, labels = torch.from_numpy(self.rows[index].astype(np.int64))
        return {"input_ids": ids, "labels": labels}


def pairs_of(length: int) -> int:
    """How many pairs an example of so many tokens has."""
    return length // 8


def generate_recall(
    length: int, vocabulary: int, sizes: dict[str, int] = RECALL_SIZES, seed: int = 0
) -> tuple[PreTrainedTokenizerFast, dict[str, RecallExamples]]:
    """A tokenizer of numerals, and per split `sizes` examples of `length` tokens with a pair for every eight of them;
    the same for the same seed, and generated once.

    Raises ValueError for examples without a pair, and for a vocabulary that does not hold the keys and values.
    """
    pairs = pairs_of(length)
    if pairs < 1:
        raise ValueError(f"an example of recall needs at least 8 tokens, got {length}")
    if vocabulary < 2 * pairs:
        raise ValueError(f"{pairs} keys and as many values do not fit into a vocabulary of {vocabulary}")
    found = {}
    for number, (split, count) in enumerate(sizes.items()):
        key = hashlib.sha256(f"recall {split} {count} {length} {vocabulary} {seed} version 2".encode()).hexdigest()
        random = np.random.default_rng((seed, number))
        found[split] = RecallExamples(
            cached_array(key, partial(_examples, random, count, length, pairs, vocabulary)), length
        )
    return symbol_tokenizer([str(number) for number in range(vocabulary)]), found


def _examples(
    random: np.random.Generator, count: int, length: int, pairs: int, vocabulary: int
) -> Iterator[np.ndarray]:
    """Examples one behind the other, of each its tokens and then its labels.

    Keys are of the lower half of the vocabulary, values of the upper one; what is neither is drawn from all of it.
    """
    half = vocabulary // 2
    places = np.arange(2 * pairs, length - 2, 2)
    likely_S = (1.0 + np.arange(len(places))) ** (POWER - 1)
    for start in range(0, count, TOGETHER):
        E = min(TOGETHER, count - start)
        rows_E2T = np.full((E, 2, length), NO_ANSWER, dtype=np.int32)
        ids_ET, labels_ET = rows_E2T[:, 0], rows_E2T[:, 1]
        ids_ET[:] = random.integers(vocabulary, size=(E, length))
        keys_EP, values_EP = _drawn(random, np.ones(half), E, pairs), half + _drawn(random, np.ones(half), E, pairs)
        ids_ET[:, 0 : 2 * pairs : 2], ids_ET[:, 1 : 2 * pairs : 2] = keys_EP, values_EP
        # At even places or at odd ones, so that who attends at every other place meets half of the questions.
        asked_EP = places[_drawn(random, likely_S, E, pairs)] + random.integers(2, size=(E, 1))
        np.put_along_axis(ids_ET, asked_EP, keys_EP, axis=1)
        np.put_along_axis(labels_ET, asked_EP + 1, values_EP, axis=1)
        yield rows_E2T.reshape(-1)


def _drawn(random: np.random.Generator, likely_N: np.ndarray, rows: int, count: int) -> np.ndarray:
    """`count` different indices for each row, one after the other with probabilities in proportion to `likely_N` among
    those left: those of the largest logarithms with Gumbel noise."""
    noisy = np.log(likely_N) + random.gumbel(size=(rows, len(likely_N)))
    return np.argsort(-noisy, axis=1)[:, :count]
