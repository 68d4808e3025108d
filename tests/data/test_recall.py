"""Multi-query associative recall, by its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiaroscuro.data import generate_recall

pytestmark = pytest.mark.usefixtures("cache")
SIZES = {"train": 1200, "test": 30}


@settings(deadline=None, max_examples=20)
@given(length=st.integers(8, 70), vocabulary=st.integers(20, 90), seed=st.integers(0, 10**6))
def test_every_key_is_asked_for_once_behind_the_pairs_and_answered_with_its_value(length, vocabulary, seed):
    pairs, half = length // 8, vocabulary // 2
    _, splits = generate_recall(length, vocabulary, {"train": 3}, seed)
    for example in splits["train"]:
        ids, labels = example["input_ids"].tolist(), example["labels"].tolist()
        assert len(ids) == len(labels) == length
        assert all(0 <= token < vocabulary for token in ids)
        values = dict(zip(ids[0 : 2 * pairs : 2], ids[1 : 2 * pairs : 2], strict=True))
        assert len(values) == len(set(values.values())) == pairs
        assert all(key < half <= value for key, value in values.items())
        answered = [place for place, label in enumerate(labels) if label != -100]
        assert all(place > 2 * pairs for place in answered)
        assert {ids[place - 1]: labels[place] for place in answered} == values
        assert len(answered) == pairs


def test_the_same_seed_gives_the_same_and_splits_and_seeds_differ():
    _, first = generate_recall(64, 100, SIZES)
    _, again = generate_recall(64, 100, SIZES)
    _, other = generate_recall(64, 100, SIZES, seed=1)
    assert {split: len(examples) for split, examples in first.items()} == SIZES
    assert np.array_equal(first["train"].stored, again["train"].stored)
    assert not np.array_equal(first["train"].rows[:30], first["test"].rows)
    assert not np.array_equal(first["train"].stored, other["train"].stored)
    assert first["test"].batch(range(5, 7)).tolist() == [first["test"][n]["input_ids"].tolist() for n in (5, 6)]


def test_keys_are_asked_for_soon_by_a_power_law():
    """The first place is asked for most, and each twice as far half as often, as long as few are taken."""
    _, splits = generate_recall(1024, 300, {"train": 400})
    asked = np.concatenate([np.flatnonzero(labels != -100) for labels in splits["train"].rows[:, 1]])
    _, counts = np.unique((asked - 1 - 256) // 2, return_counts=True)
    assert counts[0] > 395
    assert counts[300:].mean() < counts[:100].mean() / 2


def test_the_tokenizer_knows_numerals():
    tokenizer, _ = generate_recall(8, 50, {"train": 1})
    assert tokenizer("7 0 49").input_ids == [7, 0, 49]
    assert tokenizer.eos_token_id == 50


@pytest.mark.parametrize(("length", "vocabulary", "complaint"), [(7, 50, "at least 8 tokens"), (80, 19, "10 keys")])
def test_what_holds_no_pairs_is_refused(length, vocabulary, complaint):
    with pytest.raises(ValueError, match=complaint):
        generate_recall(length, vocabulary, {"train": 1})
