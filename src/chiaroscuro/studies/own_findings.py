"""The rules by which our own claims are judged."""

import statistics
from typing import NamedTuple

from chiaroscuro.studies.budgets import (
    DEEP_TWIN,
    DENSE_START,
    EXPLORED,
    HASHED,
    LAYERS,
    NEAR,
    NEARER,
    NO_ATTENTION,
    NO_CONVOLUTION,
    POST_NORM,
    QUARTER,
    RANDOM_QUARTER,
    ROUTED_KEYS,
    TWIN,
    UPPER,
)
from chiaroscuro.studies.evidence import Difference, Finished, difference
from chiaroscuro.studies.findings import (
    FAILS,
    HOLDS,
    OPEN,
    Finding,
    Studies,
    as_good,
    by_rate,
    compared,
    gained,
    shown,
    sized,
)
from chiaroscuro.studies.paper_findings import DCT_GAIN
from chiaroscuro.studies.table import at_a_standstill, on_text

AS_GOOD = 0.02  # of perplexity: by how much an arm that is as good may be worse
BELOW_HALF = ("37.5 %", "25 %", "12.5 %")  # of the attention
STARTED_DENSE = BELOW_HALF[1:]  # at which `chiar` is tried with a dense start
OTHER_TEXT = "wikitext"
SEEN_IN_TRIALS = 3  # of the seeds of `half`: its body was chosen with them, on its texts
RECALL_APART, RECALLS = 0.02, 0.9  # accuracy that is as good, and that of a twin that can do it at all

Pairs = list[tuple[str, str]]


class OnBothTexts(NamedTuple):
    """A difference on the test split, and on WikiText's text."""

    own: Difference
    other: Difference

    def __str__(self) -> str:
        return f"{self.own}, on WikiText's text {self.other}"


def _on_both_texts(study: Finished, pairs: Pairs) -> tuple[list[list[str]], dict[tuple[str, str], OnBothTexts]]:
    """Arms against others: a table with the text in front, and the differences."""
    tables, found = zip(
        *(compared([(study, *pair) for pair in pairs], text) for text in (None, OTHER_TEXT)), strict=True
    )
    head, *_ = tables[0]
    lines = [[text, *row] for text, rows in zip(("test", OTHER_TEXT), tables, strict=True) for row in rows[1:]]
    both = {pair: OnBothTexts(*each) for pair, *each in zip(pairs, *found, strict=True)}
    return [["text", *head], *lines], both


def _mean(study: Finished, pairs: Pairs) -> OnBothTexts:
    """The mean difference over several pairs."""
    return OnBothTexts(difference(study, pairs), difference(study, pairs, OTHER_TEXT))


def of_the_demo(studies: Studies) -> Finding:
    study = studies["demo_seeds"]
    table, (found,) = compared([(study, "chiar", TWIN)])
    return Finding(
        as_good([found], AS_GOOD),
        [
            f"`chiar` against its twin: {found}. By learning rate, with the first seed: {by_rate(study, 'chiar')} of "
            f"`chiar`, {by_rate(study, TWIN)} of its twin."
        ],
        table,
    )


def half_of_the_attention(studies: Studies) -> Finding:
    study = studies["half"]
    pre, post = (UPPER, TWIN), (f"{POST_NORM}{UPPER}", f"{POST_NORM}{TWIN}")
    deeper, bodies = (DEEP_TWIN, TWIN), (f"{POST_NORM}{TWIN}", TWIN)
    table, found = _on_both_texts(study, [pre, post, deeper, bodies])
    return Finding(
        f"pre-norm: {as_good([*found[pre]], AS_GOOD)}; post-norm: {as_good([*found[post]], AS_GOOD)}",
        [
            f"Attention in the upper two of five layers only, against four layers with attention: {found[pre]}; with "
            f"post-norm {found[post]}. {_unseen(study, pre)} Attention in five layers, with narrower feed-forward "
            f"networks (a quarter more attention), changes full attention by {found[deeper]}; post-norm by "
            f"{found[bodies]}.",
            *(_without_stalled(study, arm) for arm in post if any(at_a_standstill(study.runs[arm]))),
            f"Mean perplexities divided by full attention's: {_times(study, UPPER)}.",
            *_worth(studies),
        ],
        table,
    )


def a_quarter_of_it(studies: Studies) -> Finding:
    study = studies["half"]
    pairs = [(QUARTER, other) for other in (TWIN, DEEP_TWIN, UPPER)]
    table, found = _on_both_texts(study, pairs)
    twin, deeper, whole = (found[pair] for pair in pairs)
    return Finding(
        as_good([*twin], AS_GOOD),
        [
            f"Attention for half of the tokens in the upper two of five layers, against four layers with attention: "
            f"{twin}; against five, with narrower feed-forward networks: {deeper}; against all tokens of those two "
            f"layers: {whole}. {_unseen(study, pairs[0])}",
            f"Mean perplexities divided by full attention's: {_times(study, QUARTER)}. Thresholds are set on "
            f"validation text; of all tokens of a text attend in those two layers {_attending(study, QUARTER)}.",
            *_worth(studies),
        ],
        table,
    )


def _unseen(study: Finished, pair: tuple[str, str]) -> str:
    """The same by the seeds that no trial had."""
    found = OnBothTexts(*(difference(study, [pair], text, skipped=SEEN_IN_TRIALS) for text in (None, OTHER_TEXT)))
    return f"Without the first {SEEN_IN_TRIALS} seeds, which trials on these texts had too: {found}."


def _without_stalled(study: Finished, arm: str) -> str:
    """What an arm has where it learned."""
    runs = study.runs[arm]
    stalled = at_a_standstill(runs)
    learned = [run["perplexity"] for run, still in zip(runs, stalled, strict=True) if not still]
    return (
        f"Of {arm}, {sum(stalled)} of {len(runs)} seeds came to a standstill; the others have a perplexity of "
        f"{statistics.mean(learned):.2f} on average."
    )


def _worth(studies: Studies) -> list[str]:
    """What attention is worth at all, where it is known: what is left out can cost no more than that."""
    if "budgets" not in studies:
        return []
    worth = _mean(studies["budgets"], [(NO_ATTENTION, TWIN)])
    return [f"Without any attention, in as large a model, perplexity differs by {worth} (`budgets`)."]


def in_twice_the_layers(studies: Studies) -> Finding:
    study = studies["deeper"]
    pairs = [(QUARTER, TWIN), (UPPER, TWIN), (NO_ATTENTION, TWIN), (QUARTER, RANDOM_QUARTER), (QUARTER, NEAR)]
    table, found = _on_both_texts(study, pairs)
    quarter, upper, without, unchosen, near = found.values()
    return Finding(
        as_good([*quarter], AS_GOOD),
        [
            f"A quarter of the attention against all: {quarter}; without any attention {without}. All tokens of the "
            f"upper four of ten layers: {upper}. A quarter at the tokens that the router picks against random ones: "
            f"{unchosen}; against all tokens of the same layers with the last 64 tokens as keys: {near}.",
            f"Mean perplexities divided by full attention's: at a quarter {_times(study, QUARTER)}; at half "
            f"{_times(study, UPPER)}.",
        ],
        table,
    )


def _times(study: Finished, arm: str) -> str:
    """The mean perplexity of an arm, to full attention's, on the test split and on each further text."""
    own, twin = study.table[arm], study.table[TWIN]
    ratios = {
        text: on_text(own, text)["perplexity"]["mean"] / on_text(twin, text)["perplexity"]["mean"]
        for text in (None, *study.study.plan.test_on)
    }
    return ", ".join(f"{ratio:.3f} ({text or 'test'})" for text, ratio in ratios.items())


def _attending(study: Finished, arm: str) -> str:
    """The share of all tokens of a text that attend in the layers that route, on the test split and on each further
    text: the mean over these layers and the seeds."""
    texts = (None, *study.study.plan.test_on)
    found = []
    for text in texts:
        measured = [result if text is None else result["test_on"][text] for result in study.runs[arm]]
        shares = [layer["attention"] for each in measured for layer in each["routing"].values()]
        found.append(f"{100 * statistics.mean(shares):.1f} % ({text or 'test'})")
    return ", ".join(found)


def who_gets_it(studies: Studies) -> Finding:
    study = studies["budgets"]
    routers = ("benefit", "entropy", "interleaved")
    against_random = {
        router: [(f"{router}, {share}", f"random, {share}") for share in BELOW_HALF] for router in routers
    }
    against_places = [(f"benefit, {share}", f"interleaved, {share}") for share in BELOW_HALF]
    explored = [(f"benefit, {share}", f"{EXPLORED}, {share}") for share in BELOW_HALF[1:]]
    exploring = [(f"{EXPLORED}, {share}", f"random, {share}") for share in BELOW_HALF[1:]]
    hashed, hashing = [(QUARTER, HASHED)], [(HASHED, RANDOM_QUARTER)]
    grids = [*against_random.values(), against_places, explored, exploring, hashed, hashing]
    table, _ = _on_both_texts(study, [pair for grid in grids for pair in grid])
    found = {router: _mean(study, pairs) for router, pairs in against_random.items()}
    controls = {
        "against tokens at even distances": _mean(study, against_places),
        "where random tokens are explored too": _mean(study, explored),
        "against a hash of the token": _mean(study, hashed),
    }
    verdict = gained(found["benefit"].own)
    apart = [f"{gained(each.own)} {control}" for control, each in controls.items() if gained(each.own) != verdict]
    places, alike, by_hash = controls.values()
    return Finding(
        "; ".join([verdict, *apart]),
        [
            f"Against random tokens of the same layers, the mean over {', '.join(BELOW_HALF)} of attention: "
            f"{'; '.join(f'{router} {each}' for router, each in found.items())}. `benefit` against tokens at even "
            f"distances: {places}. It explores in training, where an eighth of the tokens get both operators, blended; "
            f"random tokens of a model that does so too differ from others by {_mean(study, exploring)}, the mean over "
            f"{' and '.join(BELOW_HALF[1:])}, and `benefit` from them by {alike}. Tokens picked at 25 % by a hash of "
            f"which they are, with each seed another, differ from random ones by {_mean(study, hashing)}, and "
            f"`benefit` from them by {by_hash}. The verdict is by the test split."
        ],
        table,
    )


def tokens_or_layers(studies: Studies) -> Finding:
    study = studies["budgets"]
    chosen = [(f"benefit, {share}", f"{LAYERS}, {share}") for share in ("75 %", "25 %")]
    unchosen = [(f"interleaved, {share}", f"{LAYERS}, {share}") for share in ("75 %", "25 %")]
    table, _ = _on_both_texts(study, [*chosen, *unchosen, (NO_ATTENTION, TWIN)])
    found = _mean(study, chosen)
    return Finding(
        gained(found.own),
        [
            f"As much attention for chosen tokens of more layers as for all tokens of fewer, the mean over 75 and 25 % "
            f"of it: {found}; for tokens at even distances instead of the chosen ones {_mean(study, unchosen)}. The "
            "verdict is by the test split.",
            *_worth(studies),
        ],
        table,
    )


def far_or_near(studies: Studies) -> Finding:
    study = studies["budgets"]
    chosen = [(QUARTER, NEAR), ("benefit, 12.5 %", NEARER)]
    near = [(NEAR, TWIN), (NEARER, TWIN), (NEAR, UPPER), (NEARER, UPPER)]
    table, both = _on_both_texts(study, [*chosen, *near])
    found = _mean(study, chosen)
    wide, narrow, of_upper, narrow_of_upper = (both[pair] for pair in near)
    attention = [100 * study.table[arm]["attention_ratio"]["mean"] for arm in (NEAR, NEARER)]
    return Finding(
        gained(found.own),
        [
            f"All keys for some tokens of two layers against the nearest keys for all of them, the mean over two "
            f"budgets: {found}. Sliding windows of 64 and 32 tokens take {attention[0]:.1f} and {attention[1]:.1f} % "
            f"of full attention's FLOPs; against full attention they have {wide} and {narrow}, against all keys for "
            f"all tokens of the same two layers {of_upper} and {narrow_of_upper}. The verdict is by the test split."
        ],
        table,
    )


def dct_for_nothing(studies: Studies) -> Finding:
    study = studies["budgets"]
    pairs = [
        ("with the DCT, benefit, 25 %", QUARTER),
        ("with the DCT, entropy in the middle layers, 50 %", UPPER),
    ]
    table, found = _on_both_texts(study, pairs)
    with_it, as_published = (found[pair] for pair in pairs)
    return Finding(
        sized(with_it.own, -DCT_GAIN),
        [
            f"With the DCT for the tokens that do not attend: {with_it}. The paper's four layers, half of their "
            f"attention by entropy, against the upper two of five layers attending: {as_published}. The verdict is by "
            "the test split."
        ],
        table,
    )


def short_convolution(studies: Studies) -> Finding:
    study = studies["budgets"]
    pairs = [*((arm, f"{NO_CONVOLUTION}{arm}") for arm in (QUARTER, TWIN)), (QUARTER, f"{NO_CONVOLUTION}{TWIN}")]
    table, found = _on_both_texts(study, pairs)
    routed, full, across = (found[pair] for pair in pairs)
    return Finding(
        f"{gained(routed.own)} at a quarter of the attention; {gained(full.own)} with full attention",
        [
            f"A convolution over four tokens at the input of every layer changes perplexity by {routed} at a quarter "
            f"of the attention and by {full} with full attention. A quarter with it against all without: {across}. "
            "The verdict is by the test split."
        ],
        table,
    )


def routed_keys(studies: Studies) -> Finding:
    study = studies["half"]
    pairs = [(ROUTED_KEYS, other) for other in (QUARTER, TWIN)]
    table, found = _on_both_texts(study, pairs)
    all_keys, full = (found[pair] for pair in pairs)
    return Finding(
        as_good([*all_keys], AS_GOOD),
        [
            f"Routed keys against all, with half of the tokens in the upper two of five layers: {all_keys}; against "
            f"full attention: {full}. Of all tokens of a text attend in those two layers "
            f"{_attending(study, ROUTED_KEYS)}, and the attention is by the square of their share in each."
        ],
        table,
    )


def recall(studies: Studies) -> Finding:
    study = studies["recall"]
    post_norm = f"{POST_NORM}{TWIN}"
    arms = [arm for arm in study.table if not arm.startswith(POST_NORM) and arm != TWIN]
    table, found = compared([(study, arm, TWIN) for arm in [*arms, post_norm]])
    table = _with_seeds(table, study, [*arms, post_norm])
    *_, of_post_norm = found
    seeds = len(study.study.seeds)
    within = [f"{arm} ({_recalling(study, arm)})" for arm in arms if _recalling(study, arm)]
    return Finding(
        _recalled(study, UPPER, "every other layer"),
        [
            f"Full attention has {shown(study, TWIN)} %, with post-norm {of_post_norm} against it. Within "
            f"{100 * RECALL_APART:.0f} points of it, with so many seeds of {seeds}: {', '.join(within) or 'none'}. The "
            f"recipe `chiar`, a quarter of the attention, by seed: {_by_seed(study, QUARTER)} %."
        ],
        table,
    )


def _with_seeds(table: list[list[str]], study: Finished, arms: list[str]) -> list[list[str]]:
    """A table of arms with the accuracies of each by seed: where a run learns or does not, a mean says little."""
    cells = ["by seed, %", *(_by_seed(study, arm) for arm in arms)]
    return [[*row, cell] for row, cell in zip(table, cells, strict=True)]


def dense_start(studies: Studies) -> Finding:
    text, lookup = studies["budgets"], studies["recall"]
    started, places = f"{DENSE_START}{QUARTER}", "interleaved, 25 %"
    in_recall = [(started, QUARTER), (started, f"{DENSE_START}{places}"), (f"{DENSE_START}{places}", places)]
    recall_table, (without, chosen, interleaved) = compared([(lookup, *pair) for pair in in_recall])
    by_budget = [(f"{DENSE_START}benefit, {budget}", f"benefit, {budget}") for budget in STARTED_DENSE]
    text_table, _ = compared(
        [(text, *pair) for pair in [*by_budget, (started, f"{DENSE_START}{places}"), (started, TWIN)]]
    )
    gain = _mean(text, by_budget)
    costs = [text.table[arm]["training_flops"]["mean"] for arm in (started, QUARTER)]
    return Finding(
        f"{_recalled(lookup, started)} in recall; {gained(gain.own)} on text",
        [
            f"Recall at 25 %, by seed: {_by_seed(lookup, started)} %; without a dense start "
            f"{_by_seed(lookup, QUARTER)} %, a difference of {without}. What `benefit` picks against every second "
            f"token, both after a dense start: {chosen}; every second token after one against without: {interleaved}.",
            f"On text, the mean over {' and '.join(STARTED_DENSE)}: {gain}. Training at 25 % takes {costs[0]:.3f} of "
            f"full attention's FLOPs, without a dense start {costs[1]:.3f}.",
        ],
        [[*recall_table[0], ""], *([*row, ""] for row in recall_table[1:]), *text_table[1:]],
    )


def _recalled(study: Finished, *arms: str) -> str:
    """Whether each arm recalls as full attention does with every seed; it does not where it does with half of them at
    most. A run learns to or does not, so that means and intervals would say little."""
    seeds = len(study.study.seeds)
    if study.table[TWIN]["accuracy"]["mean"] < RECALLS:
        return OPEN
    fewest = min(_recalling(study, arm) for arm in arms)
    return HOLDS if fewest == seeds else FAILS if fewest <= seeds / 2 else OPEN


def _recalling(study: Finished, arm: str) -> int:
    """With how many seeds an arm is within two points of full attention."""
    least = study.table[TWIN]["accuracy"]["mean"] - RECALL_APART
    return sum(value >= least for value in study.table[arm]["accuracy"]["values"])


def _by_seed(study: Finished, arm: str) -> str:
    """Accuracy in per cent."""
    return ", ".join(f"{100 * value:.1f}" for value in study.table[arm]["accuracy"]["values"])
