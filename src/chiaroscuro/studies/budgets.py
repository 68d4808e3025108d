"""What does each part of the attention buy, and which tokens are to get it?"""

from collections.abc import Iterator
from dataclasses import replace

from chiaroscuro.studies.ablation import PLAN, SEEDS
from chiaroscuro.studies.study import Arm, Study

# The strongest body of this size, full attention's best (study `ablation`), and the short convolution for every arm.
_BODY = {"norm_placement": "post", "embedding_norm": False, "short_convolution": 4}
ROUTERS = {"benefit": "benefit", "entropy": "threshold", "random": "random", "interleaved": "interleaved"}
LAYERS = "whole layers"  # fixed layers attend for all their tokens
TWIN = "full attention"
_EVERY_CURVE = (*ROUTERS, LAYERS)


def _arm(name: str, layers: str, curves: tuple[str, ...], router: str = "benefit", share: float = 0.5) -> Arm:
    """layers: per layer a letter, (a)ttention, (n)othing, or (r)outed between the two, `share` of the tokens to
    attention."""
    operators = {"a": ["attention"], "n": ["none"], "r": ["none", "attention"]}
    routed = {"router": router, "routed_share": share} if "r" in layers else {}
    fields = _BODY | {"layer_operators": [operators[letter] for letter in layers]} | routed
    return Arm(name, "full_attention", fields, curves=curves)


def _arms() -> Iterator[Arm]:
    yield _arm(TWIN, "aaaa", _EVERY_CURVE)
    yield _arm(f"{LAYERS}, 75 %", "naaa", (LAYERS,))
    yield _arm(f"{LAYERS}, 50 %", "nnaa", _EVERY_CURVE)
    yield _arm("every other layer", "nana", ())
    yield _arm(f"{LAYERS}, 25 %", "nnna", (LAYERS,))
    yield _arm("no attention", "nnnn", _EVERY_CURVE)
    for name, router in ROUTERS.items():
        yield _arm(f"{name}, 75 %", "rraa", (name,), router, 0.5)
        yield _arm(f"{name}, 37.5 %", "nnrr", (name,), router, 0.75)
        yield _arm(f"{name}, 25 %", "nnrr", (name,), router, 0.5)
        yield _arm(f"{name}, 12.5 %", "nnnr", (name,), router, 0.5)


BUDGETS = Study(
    name="budgets",
    question="What does each part of the attention buy, and which tokens are to get it?",
    plan=replace(PLAN, test_on={"wikitext": "wikitext-2"}, bf16=True),  # 1.6 times as fast on the CPU at hand
    arms=tuple(_arms()),
    learning_rates=(2e-3, 4e-3),
    seeds=SEEDS,
)
