"""ListOps expressions, and an evaluator that shares nothing with ours."""

import re
import statistics
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiaroscuro.data import LabelledSequences, generate_listops
from chiaroscuro.data.listops import SYMBOLS, flat_expression, nested_expression, value

PYTHON = {
    "[MAX": "max((",
    "[MIN": "min((",
    "[MED": "med((",
    "[SM": "sm((",
    "[MEAN": "mean((",
    "[MEDIAN": "med((",
    "]": ")),",
}
FUNCTIONS = {
    "max": max,
    "min": min,
    "med": lambda values: int(statistics.median(values)),
    "sm": lambda values: sum(values) % 10,
    "mean": lambda values: int(statistics.mean(values)),
}


def independent_value(symbols: list[str]) -> int:
    """The expression rewritten as a Python expression and evaluated by Python."""
    code = "".join(PYTHON.get(symbol, f"{symbol},") for symbol in symbols)
    return eval(re.sub(",$", "", code), {"__builtins__": {}}, FUNCTIONS)


def depth(symbols: list[str]) -> int:
    """Levels of the tree, the digits included."""
    level = deepest = 0
    for symbol in symbols:
        level += (symbol.startswith("[")) - (symbol == "]")
        deepest = max(deepest, level)
    return deepest + 1


@given(st.integers(0, 10**9))
def test_values_are_those_of_an_independent_evaluator(seed):
    random = Random(seed)
    for symbols in (nested_expression(random), flat_expression(random), nested_expression(random, 5, 60)):
        assert value(symbols) == independent_value(symbols)


def test_two_thousand_expressions_lie_within_the_published_bounds():
    random = Random(0)
    expressions = [nested_expression(random) for _ in range(2000)]
    assert all(500 <= len(symbols) <= 2000 for symbols in expressions)
    assert all(depth(symbols) <= 10 for symbols in expressions)
    assert max(map(depth, expressions)) == 10
    used = {symbol for symbols in expressions for symbol in symbols}
    assert used == {*map(str, range(10)), "]", "[MAX", "[MIN", "[MED", "[SM"}
    for symbols in expressions[:100]:
        arguments, counts = [], []
        for symbol in symbols:
            if symbol == "]":
                counts.append(arguments.pop())
            if symbol.startswith("["):
                arguments = [*arguments[:-1], arguments[-1] + 1, 0] if arguments else [0]
            elif symbol != "]":
                arguments[-1] += 1
        assert min(counts) >= 2
        assert max(counts) <= 10


def test_every_label_occurs_and_the_extremes_most_as_maxima_and_minima_make_them():
    random = Random(1)
    counts = Counter(value(nested_expression(random)) for _ in range(2000))
    assert set(counts) == set(range(10))
    assert {label for label, _ in counts.most_common(2)} == {0, 9}
    assert max(counts.values()) < 0.25 * 2000
    assert min(counts.values()) > 0.04 * 2000


def test_flat_expressions_are_one_operator_over_four_to_eight_digits():
    random = Random(2)
    expressions = [flat_expression(random) for _ in range(2000)]
    assert {symbols[0] for symbols in expressions} == {"[MAX", "[MIN", "[MEAN", "[MEDIAN"}
    assert {len(symbols) - 2 for symbols in expressions} == {4, 5, 6, 7, 8}
    assert all(symbol.isdigit() for symbols in expressions for symbol in symbols[1:-1])


@pytest.mark.parametrize(
    "symbols", [[], ["]"], ["[MAX", "1"], ["1", "2"], ["[MAX", "]"], ["[SUM", "1", "]"], ["1", "]"]]
)
def test_what_is_no_expression_has_no_value(symbols):
    with pytest.raises(ValueError, match="not an expression"):
        value(symbols)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("task", ["listops", "listops_flat"])
def test_generated_data_are_encoded_labelled_and_repeatable(task):
    sizes = {"train": 30, "validation": 5, "test": 5}
    data = generate_listops(task, sizes)
    again, other = generate_listops(task, sizes), generate_listops(task, sizes, seed=1)
    for split, size in sizes.items():
        sequences = LabelledSequences(data.tokens[split], data.labels[split], data.tokenizer.eos_token_id, 2000)
        assert len(sequences) == size
        for index in range(size):
            example = sequences[index]
            symbols = data.tokenizer.convert_ids_to_tokens(example["input_ids"].tolist())
            assert int(example["labels"]) == independent_value(symbols)
            assert data.tokenizer(" ".join(symbols))["input_ids"] == example["input_ids"].tolist()
        assert np.array_equal(data.tokens[split], again.tokens[split])
        assert not np.array_equal(data.tokens[split], other.tokens[split])
    assert len(data.tokenizer) == len(SYMBOLS) + 1
    assert not np.array_equal(data.labels["validation"], data.labels["test"])
