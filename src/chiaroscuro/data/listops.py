"""ListOps, generated: expressions over lists of digits whose value is the label.

Two tasks bear the name. `nested_expression` is that of Long Range Arena (Tay et al., arXiv 2011.04006; after Nangia and
Bowman, arXiv 1804.06028): MAX, MIN, MED and SM (sum modulo 10) over two to ten arguments each, nested up to depth 10,
500 to 2000 symbols. `flat_expression` is what the code of the paper generates under that name: one MAX, MIN, MEAN or
MEDIAN over four to eight digits, no nesting.
"""

from random import Random

DIGITS = tuple(str(digit) for digit in range(10))
NESTED_OPERATORS = ("[MAX", "[MIN", "[MED", "[SM")
FLAT_OPERATORS = ("[MAX", "[MIN", "[MEAN", "[MEDIAN")
CLOSE = "]"
SYMBOLS = (*DIGITS, CLOSE, *dict.fromkeys(NESTED_OPERATORS + FLAT_OPERATORS))

DEEPEST = 10  # levels, the digits included
SHORTEST, LONGEST = 500, 2000  # symbols
LONGEST_FLAT = 10  # the same of a flat expression
OPERATOR_SHARE = 0.25  # of the places below the deepest level that an operator takes rather than a digit


def nested_expression(random: Random, shortest: int = SHORTEST, longest: int = LONGEST) -> list[str]:
    """Symbols of a random expression with between `shortest` and `longest` of them, by rejection."""
    while True:
        symbols = _grow(random, longest)
        if symbols is not None and len(symbols) >= shortest:
            return symbols


def _grow(random: Random, longest: int) -> list[str] | None:
    """One random tree, written out; None once it is certain to be too long."""
    symbols: list[str] = []
    waiting = [1]  # levels of the places still to be filled, the next one last; 0 closes a list
    while waiting:
        level = waiting.pop()
        if level == 0:
            symbols.append(CLOSE)
        elif level == 1 or (level < DEEPEST and random.random() < OPERATOR_SHARE):
            symbols.append(random.choice(NESTED_OPERATORS))
            waiting.append(0)
            waiting.extend([level + 1] * random.randint(2, 10))
            if len(symbols) + len(waiting) > longest:
                return None
        else:
            symbols.append(random.choice(DIGITS))
    return symbols


def flat_expression(random: Random) -> list[str]:
    """One operator over four to eight digits."""
    return [random.choice(FLAT_OPERATORS), *random.choices(DIGITS, k=random.randint(4, 8)), CLOSE]


def value(symbols: list[str]) -> int:
    """The digit an expression stands for; MEAN and the median of an even number are rounded down. Raises ValueError
    when the symbols are no expression."""
    stack: list[list[int]] = [[]]
    operators: list[str] = []
    for symbol in symbols:
        if symbol in DIGITS:
            stack[-1].append(int(symbol))
        elif symbol == CLOSE and operators and stack[-1]:
            arguments = stack.pop()
            stack[-1].append(_apply(operators.pop(), arguments))
        elif symbol in SYMBOLS and symbol != CLOSE:
            operators.append(symbol)
            stack.append([])
        else:
            raise ValueError(f"not an expression: {symbol!r} out of place")
    if len(stack) != 1 or len(stack[0]) != 1:
        raise ValueError("not an expression: a list is left open, or there is more than one")
    return stack[0][0]


def _apply(operator: str, arguments: list[int]) -> int:
    if operator == "[MAX":
        return max(arguments)
    if operator == "[MIN":
        return min(arguments)
    if operator == "[SM":
        return sum(arguments) % 10
    if operator == "[MEAN":
        return sum(arguments) // len(arguments)
    ordered, middle = sorted(arguments), len(arguments) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) // 2
