"""What does each part of the attention buy, which tokens are to get it, and how little does? On reviews, on source
code, which needs more of it, and where each answer must be looked up.

Layers are told by a letter each: (a)ttention, (n)othing, or (r)outed between the two; (d)CT, or (s)hared between that
and attention; a sliding (w)indow, within which all tokens attend. A layer of nothing or of the DCT has no projections,
and three of them have as many parameters as two that attend: so three of nothing and two more are as large as four of
attention. In the other arms the width of the feed-forward networks makes up for it, so that all arms of a study are as
large. Routed layers give attention to half of the tokens, where nothing else is said.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from chiaroscuro.studies.ablation import PLAN, SEEDS
from chiaroscuro.studies.study import Arm, Study
from chiaroscuro.training import TrainingPlan

ROUTERS = {
    "recurrence": "recurrence",
    "benefit": "benefit",
    "entropy": "threshold",
    "random": "random",
    "interleaved": "interleaved",
}
UNLEARNED = tuple(name for name in ROUTERS if name != "benefit")
LAYERS = "whole layers"  # fixed layers attend for all their tokens
POST_NORM = "post-norm, "  # what the name of an arm with that body begins with
UPPER = f"{LAYERS}, 50 %"  # the upper two of five, for half of the attention of four
QUARTER = "benefit, 25 %"
ONE_LAYER = f"{LAYERS}, 25 %"  # the fourth of six
RECURRING = "every token that recurs"  # the recipe `chiar`: in that layer
NO_ATTENTION = "no attention"
ROUTED_KEYS = "routed keys, benefit, 12.5 %"
TWIN = "full attention"
DEEP_TWIN = f"five layers, {TWIN}"
EXPLORED = "random, explored"
NEAR = "sliding window, 15.9 %"  # all tokens of that layer attend, to the last 102 of 256: as `chiar` does on this text
HASHED = "hash of the token, 12.5 %"
NO_CONVOLUTION = "no convolution, "
DENSE_START = "dense start, "  # all tokens attend at first
_EVERY_CURVE = (*ROUTERS, LAYERS)
_OPERATORS = {
    "a": ["attention"],
    "n": ["none"],
    "r": ["none", "attention"],
    "d": ["dct"],
    "s": ["dct", "attention"],
    "w": ["window"],
}
_WIDTH = PLAN.fields["hidden_size"]
_SHORT_CONVOLUTION = {"short_convolution": 4}  # it is nothing that is routed, so that every arm has it


def _arm(
    name: str,
    layers: str,
    curves: tuple[str, ...] = (),
    router: str = "benefit",
    share: float | None = 0.5,
    **more: Any,
) -> Arm:
    """An arm whose routed layers give attention to `share` of the tokens, or to those that the router takes without
    one. more: further fields of the configuration."""
    routed = {"router": router, "routed_share": share} if set(layers) & {"r", "s"} else {}
    operators = [_OPERATORS[letter] for letter in layers]
    fields = {"num_hidden_layers": len(layers), "layer_operators": operators} | routed | _SHORT_CONVOLUTION | more
    return Arm(name, "full_attention", fields, curves=curves)


def _as_large(arms: Iterable[Arm], layers: int, hidden_size: int) -> tuple[Arm, ...]:
    """The arms with networks of a width that makes them as large as so many layers of attention, whose networks are
    four times as wide as the model."""
    sized = []
    for arm in arms:
        operators = arm.fields["layer_operators"]
        attending = sum(bool({"attention", "window"} & set(each)) for each in operators)
        width = round(hidden_size * (12 * layers - 4 * attending) / (2 * len(operators)))
        sized.append(
            replace(arm, fields=arm.fields | ({"intermediate_size": width} if width != 4 * hidden_size else {}))
        )
    return tuple(sized)


def _routed(ending: str, layers: str, names: Iterable[str] = ROUTERS) -> list[Arm]:
    """An arm for each router."""
    return [_arm(f"{name}, {ending}", layers, (name,), ROUTERS[name]) for name in names]


def _dense_start(arm: Arm, steps: int) -> Arm:
    """The same where all tokens attend at first, and fewer and fewer over so many steps."""
    return replace(arm, name=f"{DENSE_START}{arm.name}", plan={"dense_steps": steps}, curves=())


def _post_norm(arm: Arm, learning_rates: tuple[float, ...] = ()) -> Arm:
    """The same with the body of the paper's second version, which trains at lower rates."""
    return replace(
        arm,
        name=f"{POST_NORM}{arm.name}",
        fields=arm.fields | {"norm_placement": "post", "embedding_norm": False},
        curves=(),
        learning_rates=learning_rates,
    )


def _without_convolution(arm: Arm) -> Arm:
    return replace(arm, name=f"{NO_CONVOLUTION}{arm.name}", fields=arm.fields | {"short_convolution": 0}, curves=())


_TWIN = _arm(TWIN, "aaaa", _EVERY_CURVE)
_DEEP_TWIN = _arm(DEEP_TWIN, "aaaaa")  # what does a layer more do by itself?
_UPPER = _arm(UPPER, "nnnaa", _EVERY_CURVE)
_ONE_LAYER = _arm(ONE_LAYER, "nnnann", (LAYERS,))
_WITHOUT = _arm(NO_ATTENTION, "nnnnnn", _EVERY_CURVE)
_BY_BENEFIT = _arm(QUARTER, "nnnrr")
_RECURRING = _arm(RECURRING, "nnnrnn", router="recurrence", share=None)
_BY_ROUTED_KEYS = _arm(ROUTED_KEYS, "nnnrr", attention_keys="routed")

_WIKITEXT = {"wikitext": "articles:wikitext-2"}
_RATES = (4e-3, 6.3e-3, 1e-2)
# Of arms whose best of three rates was the lowest or the highest: one more beyond it.
_TWIN_RATES = (2.5e-3, *_RATES)
_POST_NORM_RATES = (1.6e-3, 2.5e-3, 4e-3, 6.3e-3)

# Six seeds, so that each arm has a variance of its own: full attention scatters more than the others in `controls`.
HALF = Study(
    name="half",
    question="Half of the attention, or a quarter: does what is left out cost anything?",
    plan=replace(PLAN, test_on=_WIKITEXT | {"wikitext_tokenized": "wikitext-2"}),
    arms=_as_large(
        (
            replace(arm, curves=())  # too few budgets for a curve, which `budgets` draws
            for arm in (
                replace(_TWIN, learning_rates=_TWIN_RATES),
                _BY_BENEFIT,
                _UPPER,
                _DEEP_TWIN,
                _BY_ROUTED_KEYS,
                *(_post_norm(arm, _POST_NORM_RATES) for arm in (_TWIN, _UPPER)),
            )
        ),
        layers=4,
        hidden_size=_WIDTH,
    ),
    counted_against=TWIN,
    learning_rates=_RATES,
    seeds=tuple(range(6)),
)

# Four layers are few, and what is left out may be what the others can make up for.
DEEPER = Study(
    name="deeper",
    question="One attending layer of six, or its tokens that recur, in twice the layers and windows twice as long?",
    plan=replace(PLAN, data="python", seq_len=512, batch_size=4),
    arms=_as_large(
        (
            _arm(TWIN, "aaaaaaaa"),
            _arm(RECURRING, "nnnrnnnnnrn", router="recurrence", share=None),
            _arm(ONE_LAYER, "nnnannnnnan"),
            _arm("random, 12.5 %", "nnnrnnnnnrn", router="random"),
            _arm(NO_ATTENTION, "nnnnnnnnnnnn"),
        ),
        layers=8,
        hidden_size=_WIDTH,
    ),
    counted_against=TWIN,
    learning_rates=_RATES,
    seeds=SEEDS,
)

# On source code full attention is better at the second of these rates than at the first, by far.
BUDGETS = Study(
    name="budgets",
    question="What does each part of the attention buy, and which tokens are to get it? On source code.",
    plan=replace(PLAN, data="python"),
    arms=_as_large(
        (
            replace(arm, curves=tuple(name for name in arm.curves if name in (*UNLEARNED, LAYERS)))
            for arm in (
                _TWIN,
                _RECURRING,
                _ONE_LAYER,
                _WITHOUT,
                _arm(f"{LAYERS}, 75 %", "nnaaa", (LAYERS,)),
                _UPPER,
                *_routed("75 %", "rraa", UNLEARNED),
                *_routed("37.5 %", "nnran", UNLEARNED),
                *_routed("25 %", "nnrrn", UNLEARNED),
                *_routed("12.5 %", "nnnrnn", UNLEARNED),
            )
        ),
        layers=4,
        hidden_size=_WIDTH,
    ),
    counted_against=TWIN,
    learning_rates=_RATES,
    seeds=SEEDS,
)

# What `chiar` does otherwise than it might, at the budget that it takes itself.
ALTERNATIVES = Study(
    name="alternatives",
    question="Would other tokens, near keys for all, a DCT or no convolution serve `chiar` better? On source code.",
    plan=BUDGETS.plan,
    arms=_as_large(
        (
            replace(arm, curves=())
            for arm in (
                _TWIN,
                _RECURRING,
                _ONE_LAYER,
                _UPPER,
                *_routed("12.5 %", "nnnrnn", ("recurrence", "benefit", "random")),
                _arm(f"{EXPLORED}, 12.5 %", "nnnrnn", router="random_explored"),
                _arm(HASHED, "nnnrnn", router="hash"),
                _arm(NEAR, "nnnwnn", window=102),
                _arm("with the DCT, recurrence, 12.5 %", "dddsdd", router="recurrence"),
                _arm("with the DCT, entropy in the middle layers, 50 %", "dssa", router="threshold"),
                *(_without_convolution(arm) for arm in (_TWIN, _RECURRING)),
            )
        ),
        layers=4,
        hidden_size=_WIDTH,
    ),
    counted_against=TWIN,
    learning_rates=_RATES,
    seeds=SEEDS,
)

# What of that holds on reviews, and on prose of another kind, where attention is worth less. At the two rates of `half`
# between which, or at which, its arms have their best: both beside them were worse for all.
REVIEWS = Study(
    name="reviews",
    question="One attending layer of six, or its tokens that recur: does that cost anything on reviews?",
    plan=replace(PLAN, test_on=_WIKITEXT),
    arms=tuple(
        replace(arm, curves=())
        for arm in BUDGETS.arms
        if arm.name in (TWIN, ONE_LAYER, RECURRING, "random, 12.5 %", NO_ATTENTION)
    ),
    counted_against=TWIN,
    learning_rates=_RATES[:2],
    seeds=SEEDS,
)

# Whether a run learns to look up is a matter of chance, so that there are six seeds.
RECALL = Study(
    name="recall",
    question="Each key is to be answered with the value that it came with: who still can, with less of the attention?",
    plan=TrainingPlan(
        task="recall",
        data="recall",
        vocab_size=128,
        steps=1500,
        batch_size=64,
        seq_len=32,
        warmup_steps=150,
        save_every=250,
        fields={"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 1},
    ),
    arms=_as_large(
        (
            _TWIN,
            _UPPER,
            _ONE_LAYER,
            _RECURRING,
            _WITHOUT,
            *_routed("12.5 %", "nnnrnn"),  # twice as many tokens as there are questions
            _dense_start(_arm("benefit, 12.5 %", "nnnrnn"), 600),
            _post_norm(_TWIN),
        ),
        layers=4,
        hidden_size=64,
    ),
    counted_against=TWIN,
    learning_rates=(1e-3, 2e-3, 4e-3),
    seeds=tuple(range(6)),
    chosen_by="accuracy",
)
