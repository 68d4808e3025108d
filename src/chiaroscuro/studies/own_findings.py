"""The rules by which our own claims are judged."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from chiaroscuro.studies.budgets import (
    DEEP_TWIN,
    EXPLORED,
    HASHED,
    LAYERS,
    NEAR,
    NO_ATTENTION,
    NO_CONVOLUTION,
    ONE_LAYER,
    POST_NORM,
    QUARTER,
    RECURRING,
    ROUTED_KEYS,
    TWIN,
    UPPER,
)
from chiaroscuro.studies.evidence import Difference, Finished, difference
from chiaroscuro.studies.findings import (
    FAILS,
    Finding,
    Studies,
    as_good,
    by_rate,
    compared,
    gained,
    sized,
)
from chiaroscuro.studies.paper_findings import DCT_GAIN
from chiaroscuro.studies.table import at_a_standstill, on_text

AS_GOOD = 0.02  # of perplexity: by how much an arm that is as good may be worse
HALF, A_QUARTER = 0.5, 0.25  # of full attention's FLOPs
BELOW_HALF = ("37.5 %", "25 %", "12.5 %")  # of the attention
NEXT_BUDGET = [("25 %", "37.5 %"), ("12.5 %", "25 %")]
BY_RECURRENCE, UNCHOSEN = "recurrence, 12.5 %", "random, 12.5 %"
OTHER_TEXT = "wikitext"
SEEN_IN_TRIALS = 3  # of the seeds of `half`: its body was chosen with them, on its texts

Pairs = list[tuple[str, str]]


class OnTexts(NamedTuple):
    """A difference on the test split and, where a study has WikiText's text too, on that."""

    own: Difference
    other: Difference | None = None

    def __str__(self) -> str:
        return str(self.own) if self.other is None else f"{self.own}, on WikiText's text {self.other}"

    def as_good(self) -> str:
        return as_good([each for each in self if each is not None], AS_GOOD)


def _for_less(study: Finished, arm: str, found: OnTexts, part: float) -> str:
    """The verdict on a claim that an arm is as good with so much of full attention's FLOPs, or with less."""
    taken = [on_text(study.table[arm], text)["attention_ratio"]["mean"] for text in _texts(study)]
    return found.as_good() if max(taken) <= part else FAILS


def _texts(study: Finished) -> list[str | None]:
    """The test split, and WikiText's text where the study has it."""
    return [None, OTHER_TEXT] if OTHER_TEXT in study.study.plan.test_on else [None]


def _on_texts(study: Finished, pairs: Pairs) -> tuple[list[list[str]], dict[tuple[str, str], OnTexts]]:
    """Arms against others: a table with the text in front, and the differences."""
    texts = _texts(study)
    tables, found = zip(*(compared([(study, *pair) for pair in pairs], text) for text in texts), strict=True)
    head, *_ = tables[0]
    lines = [[text or "test", *row] for text, rows in zip(texts, tables, strict=True) for row in rows[1:]]
    each = {pair: OnTexts(*differences) for pair, *differences in zip(pairs, *found, strict=True)}
    return [["text", *head], *lines], each


def _mean(study: Finished, pairs: Pairs, skipped: int = 0) -> OnTexts:
    """The mean difference over several pairs, without the first `skipped` seeds."""
    return OnTexts(*(difference(study, pairs, text, skipped=skipped) for text in _texts(study)))


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
    table, found = _on_texts(study, [pre, post, deeper, bodies])
    return Finding(
        f"pre-norm: {_for_less(study, UPPER, found[pre], HALF)}; post-norm: "
        f"{_for_less(study, post[0], found[post], HALF)}",
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
    table, found = _on_texts(study, pairs)
    twin, deeper, whole = (found[pair] for pair in pairs)
    by_shares = [_attention_by_shares(study, QUARTER, text) for text in _texts(study)]
    verdicts = [
        as_good([each], AS_GOOD) if taken <= A_QUARTER else FAILS
        for each, taken in zip((twin.own, twin.other), by_shares, strict=True)
        if each is not None
    ]
    return Finding(
        f"on reviews: {verdicts[0]}; on WikiText's text: {verdicts[1]}",
        [
            f"Attention for half of the tokens in the upper two of five layers, against four layers with attention: "
            f"{twin}; against five, with narrower feed-forward networks: {deeper}; against all tokens of those two "
            f"layers: {whole}. {_unseen(study, pairs[0])}",
            f"Mean perplexities divided by full attention's: {_times(study, QUARTER)}. Thresholds are set on "
            f"validation text; of all tokens of a text attend in those two layers {_attending(study, QUARTER)}, which "
            f"takes {' and '.join(f'{100 * taken:.1f} %' for taken in by_shares)} of full attention's attention FLOPs "
            "on reviews and on WikiText's text.",
            *_worth(studies),
        ],
        table,
    )


def _unseen(study: Finished, pair: tuple[str, str]) -> str:
    """The same by the seeds that no trial had."""
    found = _mean(study, [pair], skipped=SEEN_IN_TRIALS)
    return (
        f"Without the first {SEEN_IN_TRIALS} seeds, which trials on these texts had too: {found}; the texts are the "
        "same, so that a body that happens to suit them still does."
    )


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
    known = [name for name in ("reviews", "budgets") if name in studies]
    worth = [f"{_mean(studies[name], [(NO_ATTENTION, TWIN)])} (`{name}`)" for name in known]
    return [f"Without any attention, in as large a model, perplexity differs by {', '.join(worth)}."] if worth else []


def tokens_that_recur(studies: Studies) -> Finding:
    reviews, code = studies["reviews"], studies["budgets"]
    pairs = [(RECURRING, TWIN), (RECURRING, ONE_LAYER), (ONE_LAYER, TWIN), (RECURRING, UNCHOSEN), (NO_ATTENTION, TWIN)]
    (table, of_code), (more, of_reviews) = (_on_texts(study, pairs) for study in (code, reviews))
    both = {pair: f"{of_code[pair]} on source code, {of_reviews[pair]} on reviews" for pair in pairs}
    twin, layer, whole, unchosen, without = both.values()
    return Finding(
        f"source code: {_for_less(code, RECURRING, of_code[pairs[0]], A_QUARTER)}; reviews: "
        f"{_for_less(reviews, RECURRING, of_reviews[pairs[0]], A_QUARTER)}",
        [
            f"Against full attention: {twin}. All tokens of that layer: {whole}; those that recur against all of them: "
            f"{layer}, and against a random half: {unchosen}. Without any attention: {without}.",
            f"Mean perplexities divided by full attention's: {_times(code, RECURRING)} on source code, "
            f"{_times(reviews, RECURRING)} on reviews. Of all tokens attend in that layer "
            f"{_attending(code, RECURRING)} on source code, {_attending(reviews, RECURRING)} on reviews, which takes "
            f"{_of_attention(code, RECURRING)} and {_of_attention(reviews, RECURRING)} % of full attention's FLOPs; "
            f"the random half takes {_of_attention(code, UNCHOSEN)} and {_of_attention(reviews, UNCHOSEN)} %.",
        ],
        [*table, *more[1:]],
    )


def in_twice_the_layers(studies: Studies) -> Finding:
    study = studies["deeper"]
    pairs = [(RECURRING, TWIN), (ONE_LAYER, TWIN), (RECURRING, UNCHOSEN), (NO_ATTENTION, TWIN)]
    table, found = _on_texts(study, pairs)
    recurring, whole, unchosen, without = found.values()
    return Finding(
        _for_less(study, RECURRING, recurring, A_QUARTER),
        [
            f"Tokens that recur, in two layers of eleven, against full attention in eight: {recurring}; all tokens of "
            f"those layers {whole}; without any attention {without}. Tokens that recur against a random half: "
            f"{unchosen}.",
            f"Mean perplexities divided by full attention's: {_times(study, RECURRING)}. Of all tokens attend in those "
            f"two layers {_attending(study, RECURRING)}, which takes {_of_attention(study, RECURRING)} % of full "
            f"attention's FLOPs; the random half takes {_of_attention(study, UNCHOSEN)} %.",
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


def _of_attention(study: Finished, arm: str) -> str:
    """The part of full attention's attention FLOPs that an arm takes on the test split, in per cent."""
    return f"{100 * study.table[arm]['attention_ratio']['mean']:.1f}"


def _attention_by_shares(study: Finished, arm: str, text: str | None) -> float:
    """The part of full attention's attention FLOPs that an arm takes whose attention is all in layers that route, from
    the shares of all tokens of a text: FLOPs were counted on its first windows only."""
    measured = [result if text is None else result["test_on"][text] for result in study.runs[arm]]
    each = [sum(layer["attention"] for layer in result["routing"].values()) for result in measured]
    layers = next(run for run in study.study.search() if run.arm == TWIN).plan.fields["num_hidden_layers"]
    return statistics.mean(each) / layers


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
    routers = ("recurrence", "entropy", "interleaved")
    by_router = {router: [(f"{router}, {share}", f"random, {share}") for share in BELOW_HALF] for router in routers}
    against_places = [(f"recurrence, {share}", f"interleaved, {share}") for share in BELOW_HALF]
    table, _ = _on_texts(study, [pair for pairs in (*by_router.values(), against_places) for pair in pairs])
    found = {router: _mean(study, pairs) for router, pairs in by_router.items()}
    for_no_more = _mean(study, [(f"recurrence, {less}", f"random, {more}") for less, more in NEXT_BUDGET])
    return Finding(
        f"for as many tokens: {gained(found['recurrence'].own)}; for no more attention: {gained(for_no_more.own)}",
        [
            f"Against random tokens of the same layers, the mean over {', '.join(BELOW_HALF)} of attention: "
            f"{'; '.join(f'{router} {each}' for router, each in found.items())}. `recurrence` against tokens at even "
            f"distances: {_mean(study, against_places)}. Tokens that recur lie late in a row and see more keys, so "
            f"that as many take more attention; against random tokens of the next larger budget, which take still more "
            f"({', '.join(f'{less} against {more}' for less, more in NEXT_BUDGET)}): {for_no_more}.",
            _taken(study, (*routers, "random"), BELOW_HALF),
        ],
        table,
    )


def who_else(studies: Studies) -> Finding:
    study = studies["alternatives"]
    pairs = [(BY_RECURRENCE, "benefit, 12.5 %"), (BY_RECURRENCE, HASHED), (f"{EXPLORED}, 12.5 %", UNCHOSEN)]
    table, found = _on_texts(study, pairs)
    benefit, hashed, exploring = found.values()
    return Finding(
        gained(benefit.own),
        [
            f"Against tokens by a score that learned what attention gains at them: {benefit}; against tokens by a hash "
            f"of which token it is: {hashed}. `benefit` explores in training, where an eighth of the tokens get both "
            f"operators, blended; random tokens of a model that does so too differ from others by {exploring}.",
            _taken(study, ("recurrence", "benefit", "random"), ("12.5 %",)),
        ],
        table,
    )


def _taken(study: Finished, names: Sequence[str], shares: Sequence[str]) -> str:
    """What arms take of full attention's FLOPs, by name at each share."""
    each = [f"{name} {', '.join(_of_attention(study, f'{name}, {share}') for share in shares)}" for name in names]
    return f"Of full attention's attention FLOPs take, in per cent, at {', '.join(shares)}: {'; '.join(each)}."


def tokens_or_layers(studies: Studies) -> Finding:
    study, shares = studies["budgets"], ("75 %", "25 %")
    chosen, unchosen = (
        [(f"{router}, {share}", f"{LAYERS}, {share}") for share in shares] for router in ("recurrence", "interleaved")
    )
    table, _ = _on_texts(study, [*chosen, *unchosen])
    found = _mean(study, chosen)
    for_no_more = _mean(study, [("recurrence, 37.5 %", UPPER), (BY_RECURRENCE, ONE_LAYER)])
    return Finding(
        f"for as many tokens: {gained(found.own)}; for no more attention: {gained(for_no_more.own)}",
        [
            f"Attention for chosen tokens of more layers against all tokens of fewer, the mean over 75 and 25 % of it: "
            f"{found}; for tokens at even distances instead of the chosen ones {_mean(study, unchosen)}. Chosen tokens "
            f"of 37.5 and 12.5 %, which take less attention than all tokens of 50 and 25 %: {for_no_more}.",
            _taken(study, ("recurrence", "interleaved", LAYERS), shares),
            _taken(study, ("recurrence",), ("37.5 %", "12.5 %")),
        ],
        table,
    )


def far_or_near(studies: Studies) -> Finding:
    study = studies["alternatives"]
    pairs = [(RECURRING, NEAR), (NEAR, ONE_LAYER), (NEAR, TWIN)]
    table, each = _on_texts(study, pairs)
    found, of_layer, of_full = each.values()
    return Finding(
        gained(found.own),
        [
            f"All keys for the tokens of a layer that recur against the nearest keys for all of its tokens: {found}. "
            f"That window takes {_of_attention(study, NEAR)} % of full attention's FLOPs, those tokens "
            f"{_of_attention(study, RECURRING)} %; against all keys for all tokens of the "
            f"layer it has {of_layer}, against full attention {of_full}."
        ],
        table,
    )


def dct_for_nothing(studies: Studies) -> Finding:
    study = studies["alternatives"]
    pairs = [
        (f"with the DCT, {BY_RECURRENCE}", BY_RECURRENCE),
        ("with the DCT, entropy in the middle layers, 50 %", UPPER),
    ]
    table, found = _on_texts(study, pairs)
    with_it, as_published = (found[pair] for pair in pairs)
    return Finding(
        sized(with_it.own, -DCT_GAIN),
        [
            f"With the DCT for the tokens that do not attend: {with_it}. The paper's four layers, half of their "
            f"attention by entropy, against the upper two of five layers attending: {as_published}."
        ],
        table,
    )


def short_convolution(studies: Studies) -> Finding:
    study = studies["alternatives"]
    pairs = [*((arm, f"{NO_CONVOLUTION}{arm}") for arm in (RECURRING, TWIN)), (RECURRING, f"{NO_CONVOLUTION}{TWIN}")]
    table, found = _on_texts(study, pairs)
    routed, full, across = (found[pair] for pair in pairs)
    return Finding(
        f"{gained(routed.own)} for `chiar`; {gained(full.own)} with full attention",
        [
            f"A convolution over four tokens at the input of every layer changes perplexity by {routed} for `chiar` "
            f"and by {full} with full attention. `chiar` with it against full attention without: {across}."
        ],
        table,
    )


def routed_keys(studies: Studies) -> Finding:
    study = studies["half"]
    pairs = [(ROUTED_KEYS, other) for other in (QUARTER, TWIN)]
    table, found = _on_texts(study, pairs)
    all_keys, full = (found[pair] for pair in pairs)
    return Finding(
        all_keys.as_good(),
        [
            f"Routed keys against all, with half of the tokens in the upper two of five layers: {all_keys}; against "
            f"full attention: {full}. Of all tokens of a text attend in those two layers "
            f"{_attending(study, ROUTED_KEYS)}, and the attention is by the square of their share in each."
        ],
        table,
    )
