"""The rules by which our own claims are judged."""

import statistics

from chiaroscuro.studies.budgets import (
    DEEP_TWIN,
    DENSE_START,
    EXPLORED,
    HASHED,
    NO_CONVOLUTION,
    POST_NORM,
    QUARTER,
    ROUTED_KEYS,
    TWIN,
    UPPER,
)
from chiaroscuro.studies.evidence import Difference, Finished, difference
from chiaroscuro.studies.findings import OPEN, Finding, Studies, as_good, by_rate, compared, gained, shown, sized
from chiaroscuro.studies.paper_findings import DCT_GAIN
from chiaroscuro.studies.table import on_text

AS_GOOD = 0.02  # of perplexity: by how much an arm that is as good may be worse
BUDGETS_OF_CHIAR = ("75 %", "37.5 %", "25 %", "12.5 %")  # at which it is tried with a dense start and without
RECALL_APART, RECALLS = 0.02, 0.9  # accuracy that is as good, and that of a twin that can do it at all


def _on_both_texts(
    pairs: list[tuple[Finished, str, str]],
) -> tuple[list[list[str]], list[Difference], list[Difference]]:
    """Arms against others on the test split and on WikiText's text: a table of both, and the differences on each."""
    table, own = compared(pairs)
    further, other = compared(pairs, "wikitext")
    return table + further[1:], own, other


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
    pairs = [(study, UPPER, TWIN), (study, f"{POST_NORM}{UPPER}", f"{POST_NORM}{TWIN}")]
    pairs += [(study, arm, TWIN) for arm in (DEEP_TWIN, f"{POST_NORM}{TWIN}")]
    table, own, other = _on_both_texts(pairs)
    return Finding(
        as_good([*own[:2], *other[:2]], AS_GOOD),
        [
            f"Attention in the upper two of five layers only, against four layers with attention: {own[0]}, on "
            f"WikiText's text {other[0]}, with post-norm {own[1]} and {other[1]}. Attention in five layers, with "
            "narrower feed-forward networks (a quarter more attention, though the study's table has its FLOPs to "
            f"itself), changes full attention by {own[2]} and {other[2]}, post-norm by {own[3]} and {other[3]}. The "
            "second half of the table is WikiText's.",
            f"Mean perplexities divided by full attention's: {_times(study, UPPER)}.",
        ],
        table,
    )


def a_quarter_of_it(studies: Studies) -> Finding:
    study = studies["half"]
    pairs = [(study, QUARTER, other) for other in (TWIN, DEEP_TWIN, UPPER)]
    table, own, other = _on_both_texts(pairs)
    return Finding(
        as_good([own[0], other[0]], AS_GOOD),
        [
            f"Attention for half of the tokens in the upper two of five layers, against four layers with attention: "
            f"{own[0]}, on WikiText's text {other[0]}; against five, with narrower feed-forward networks: {own[1]}, "
            f"{other[1]}; against all tokens of those two layers: {own[2]}, {other[2]}. The second half of the table "
            "is WikiText's.",
            f"Mean perplexities divided by full attention's: {_times(study, QUARTER)}. Thresholds are set on "
            f"validation text; of all tokens of a text attend in those two layers {_attending(study, QUARTER)}.",
        ],
        table,
    )


def in_twice_the_layers(studies: Studies) -> Finding:
    study = studies["deeper"]
    started = f"{DENSE_START}{QUARTER}"
    pairs = [(study, arm, TWIN) for arm in (QUARTER, started, UPPER)]
    table, own, other = _on_both_texts(pairs)
    return Finding(
        as_good([own[0], other[0]], AS_GOOD),
        [
            f"A quarter of the attention against all: {own[0]}, on WikiText's text {other[0]}; after a dense start "
            f"{own[1]} and {other[1]}. All tokens of the upper four of ten layers: {own[2]} and {other[2]}. The second "
            "half of the table is WikiText's.",
            f"Mean perplexities divided by full attention's: at a quarter {_times(study, QUARTER)}; after a dense "
            f"start {_times(study, started)}; at half {_times(study, UPPER)}.",
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
    routers, below_half = ("benefit", "entropy", "interleaved"), ("37.5 %", "25 %", "12.5 %")
    pairs = {router: [(f"{router}, {budget}", f"random, {budget}") for budget in below_half] for router in routers}
    table, _ = compared([(study, *pair) for router in routers for pair in pairs[router]])
    found = {router: difference(study, pairs[router]) for router in routers}
    told = "; ".join(f"{router} {each}" for router, each in found.items())
    explored = [(f"benefit, {budget}", f"{EXPLORED}, {budget}") for budget in below_half[1:]]
    unlearned = [(f"{EXPLORED}, {budget}", f"random, {budget}") for budget in below_half[1:]]
    alike, exploring = difference(study, explored), difference(study, unlearned)
    by_draw = [(QUARTER, HASHED), (HASHED, "random, 25 %")]
    further, (*_, by_hash, hashed) = compared([(study, *pair) for pair in (*explored, *unlearned, *by_draw)])
    verdict = gained(found["benefit"])
    controls = {"where random tokens are explored too": alike, "against a hash of the token": by_hash}
    apart = [f"{gained(each)} {control}" for control, each in controls.items() if gained(each) != verdict]
    return Finding(
        "; ".join([verdict, *apart]),
        [
            f"Against random tokens of the same layers, the mean over {', '.join(below_half)} of attention: {told}. "
            "`benefit` explores in training, where an eighth of the tokens get both operators, blended. Random tokens "
            f"of a model that does so too differ from others by {exploring}, the mean over "
            f"{' and '.join(below_half[1:])}, and `benefit` from them by {alike}. Tokens picked at 25 % by a hash of "
            f"which they are, with each seed another, differ from random ones by {hashed}, and `benefit` from them by "
            f"{by_hash}."
        ],
        table + further[1:],
    )


def dct_for_nothing(studies: Studies) -> Finding:
    study = studies["budgets"]
    table, found = compared(
        [
            (study, "with the DCT, benefit, 25 %", QUARTER),
            (study, "with the DCT, entropy in the middle layers, 50 %", UPPER),
        ]
    )
    return Finding(
        sized(found[0], -DCT_GAIN),
        [
            f"With the DCT for the tokens that do not attend: {found[0]}. The paper's four layers, half of their "
            "attention by entropy, which have seven per cent fewer parameters, against the upper two of five layers "
            f"attending: {found[1]}."
        ],
        table,
    )


def short_convolution(studies: Studies) -> Finding:
    study = studies["budgets"]
    table, (routed, full, across) = compared(
        [
            *((study, arm, f"{NO_CONVOLUTION}{arm}") for arm in (QUARTER, TWIN)),
            (study, QUARTER, f"{NO_CONVOLUTION}{TWIN}"),
        ]
    )
    return Finding(
        f"{gained(routed)} at a quarter of the attention; {gained(full)} with full attention",
        [
            f"A convolution over four tokens at the input of every layer changes perplexity by {routed} at a quarter "
            f"of the attention and by {full} with full attention. A quarter with it against all without: {across}."
        ],
        table,
    )


def routed_keys(studies: Studies) -> Finding:
    study = studies["half"]
    pairs = [(study, ROUTED_KEYS, other) for other in (QUARTER, TWIN)]
    table, own, other = _on_both_texts(pairs)
    return Finding(
        as_good([own[0], other[0]], AS_GOOD),
        [
            f"Routed keys against all, with half of the tokens in the upper two of five layers: {own[0]}, on "
            f"WikiText's text {other[0]}; against full attention: {own[1]} and {other[1]}. The second half of the "
            "table is WikiText's."
        ],
        table,
    )


def recall(studies: Studies) -> Finding:
    study = studies["recall"]
    arms = [arm for arm in study.table if not arm.startswith(POST_NORM) and arm != TWIN]
    table, found = compared([(study, arm, TWIN) for arm in [*arms, f"{POST_NORM}{TWIN}"]])
    apart = dict(zip(arms, found, strict=False))
    half = [apart[arm] for arm in (UPPER, "every other layer")]
    within = [arm for arm, each in apart.items() if each.within(RECALL_APART)]
    return Finding(
        as_good(half, RECALL_APART) if _can_recall(study) else OPEN,
        [
            f"At half of the attention accuracy differs by {' and '.join(map(str, half))}. Within "
            f"{100 * RECALL_APART:.0f} points of full attention ({shown(study, TWIN)} %): "
            f"{', '.join(within) or 'none'}. The recipe `chiar`, a quarter of the attention: {apart[QUARTER]}, by seed "
            f"{_by_seed(study, QUARTER)} %. Full attention with post-norm against it: {found[-1]}."
        ],
        table,
    )


def dense_start(studies: Studies) -> Finding:
    text, lookup = studies["budgets"], studies["recall"]
    started, unchosen = f"{DENSE_START}{QUARTER}", f"{DENSE_START}interleaved, 25 %"
    by_budget = [(f"{DENSE_START}benefit, {budget}", f"benefit, {budget}") for budget in BUDGETS_OF_CHIAR]
    in_recall = [(started, TWIN), (started, QUARTER), (started, unchosen), (unchosen, "interleaved, 25 %")]
    of_text = [*by_budget, (started, unchosen), (started, TWIN)]
    table, found = compared([*((lookup, *pair) for pair in in_recall), *((text, *pair) for pair in of_text)])
    without, chosen, interleaved = found[1 : len(in_recall)]
    gain = difference(text, by_budget)
    costs = [text.table[arm]["training_flops"]["mean"] for arm in (started, QUARTER)]
    answered = as_good([found[0]], RECALL_APART) if _can_recall(lookup) else OPEN
    return Finding(
        f"{answered} in recall; {gained(gain)} on text",
        [
            f"Recall at 25 %, against full attention: {found[0]}, by seed {_by_seed(lookup, started)} %; without a "
            f"dense start {_by_seed(lookup, QUARTER)} %, a difference of {without}. What `benefit` picks against every "
            f"second token, both after a dense start: {chosen}; every second token after one against without: "
            f"{interleaved}.",
            f"On text, the mean over {', '.join(BUDGETS_OF_CHIAR)}: {gain}. Training at 25 % takes {costs[0]:.3f} of "
            f"full attention's FLOPs, without a dense start {costs[1]:.3f}.",
        ],
        table,
    )


def _can_recall(study: Finished) -> bool:
    reached: float = study.table[TWIN]["accuracy"]["mean"]
    return reached >= RECALLS


def _by_seed(study: Finished, arm: str) -> str:
    """Accuracy in per cent."""
    return ", ".join(f"{100 * value:.1f}" for value in study.table[arm]["accuracy"]["values"])
