"""The claims of the paper, the controls it lacks, and our own: what was said, what was done, and by which rule it is
judged. Verdicts are computed from the results; nothing is typed in."""

from collections.abc import Callable
from dataclasses import dataclass

from chiaroscuro.studies import own_findings as own
from chiaroscuro.studies import paper_findings as paper
from chiaroscuro.studies import recall_findings as of_recall
from chiaroscuro.studies.findings import Finding, Studies


@dataclass(frozen=True)
class Claim:
    """needs: the studies that the finding takes. changes: what would change the verdict. takes_too: further studies,
    taken where they are finished."""

    title: str
    claimed: str
    tested: str
    needs: tuple[str, ...]
    find: Callable[[Studies], Finding]
    changes: str
    takes_too: tuple[str, ...] = ()

    def missing(self, studies: Studies) -> list[str]:
        return [name for name in self.needs if name not in studies]

    def still_to_come(self, studies: Studies) -> list[str]:
        return [name for name in self.takes_too if name not in studies]


CLAIMS = (
    Claim(
        "A 45 % better perplexity",
        "36.54 against 66.62 for full attention (v1, 17M parameters, WikiText-103 validation text). Of v2 the paper "
        "itself tells that it is worse: 27.51 against 23.58.",
        "The paper's architectures and its post-norm baselines, each at the best of its learning rates, in `rates` "
        "chosen from a fine grid with all seeds; the baseline with a norm after its embedding; and the same routing "
        "between pre-norm recipes. WikiText-103 itself was not at hand.",
        ("ablation", "controls"),
        paper.gain,
        "The published configuration on WikiText-103 for ten epochs, which takes a GPU; the recipe `v1_dct_attention` "
        "is as near to it as can be told (16.1 million parameters; published: 17).",
        ("rates",),
    ),
    Claim(
        "62.5 % fewer attention FLOPs",
        "0.375 of the attention FLOPs of full attention (v1); 35 to 40 % fewer FLOPs in all (v2).",
        "FLOPs planned from the routing of test text, and counted while the model runs; of the published sizes, "
        "planned from the shares that thresholds are set for.",
        ("ablation", "controls"),
        paper.flops,
        "Longer sequences: the share of attention in all FLOPs grows with their length.",
    ),
    Claim(
        "Routing collapse",
        "With learned gates one operator starves; the RBF operator falls to no use.",
        "The share of each operator in test text after training, with an RBF operator that mixes tokens, and with one "
        "that does not, as in the authors' code.",
        ("ablation",),
        paper.collapse,
        "Longer training: shares still move at the end of these runs.",
        ("collapse",),
    ),
    Claim(
        "An operating regime",
        "Wins on large natural text; loses on small text (83.81 against 75.19) and on ListOps (63.35 % against "
        "98.85 %); within 1.2 points on sentiment.",
        "The paper's DCT+attention and its baseline on all four, and the pre-norm pair beside them. The large text is "
        "three million tokens of reviews, about what the paper's small one, WikiText-2, has; the small text is another "
        "one, WikiText's validation text, a tenth as long, seen some nine times and with dropout: more than the size "
        "differs.",
        ("ablation", "controls", "small_text", "listops_flat", "imdb"),
        paper.regime,
        "Models and texts of the published size; for sentiment, more test reviews: the error of 25,000, up to 0.6 "
        "points, is not in the interval and could carry it past 1.2.",
        ("rates",),
    ),
    Claim(
        "Complementarity",
        "Spectral mixing and attention complement each other; read as: with the DCT perplexity is at least two per "
        "cent lower than with nothing in its place.",
        "The same routing with the DCT, with an identity, and with nothing in its place, in the pre-norm body, where "
        "the filter starts at zero. In the paper's own body, where it starts at one, the DCT was not taken out.",
        ("controls",),
        paper.complementarity,
        "A spectral operator that mixes tokens, which the paper's, over channels, does not.",
    ),
    Claim(
        "Control: is entropy a better router than chance?",
        "Entropy tells which tokens need attention (not tested against chance in the paper).",
        "The same share of attention given by entropy, at random, to every other token, by a learned score, by layer; "
        "and by a hash of the token, since the entropy of an embedding that nothing has mixed yet also sends a token "
        "the same way wherever it stands.",
        ("controls", "ablation"),
        paper.entropy,
        "A basis in which the order of channels means something: that of an embedding is arbitrary.",
        ("vocabulary",),
    ),
    Claim(
        "Control: the scale at the start",
        "Not in the paper: a norm after the embedding helps full attention.",
        "Full attention with a norm right after the embedding, against the same without. (It brings the residual "
        "stream to scale one, as a DCT layer with w = 1 does by itself: a possible reason, not tested.)",
        ("controls", "ablation"),
        paper.start,
        "A longer warm-up, or a larger initial embedding.",
    ),
    Claim(
        "Control: as many FLOPs, not as many tokens",
        "Routing is worth its FLOPs.",
        "Full attention trained for fewer steps, so that it executes the training FLOPs of the routed model; those of "
        "calibrating the thresholds, some three per cent more, not counted.",
        ("controls",),
        paper.equal_flops,
        "Longer sequences, where the same share of attention saves more.",
    ),
    Claim(
        "Control: the MetaRouter",
        "A learned gate over the first layer helps (v2).",
        "v2 without it, with a causal one, and with the published one, which reads later tokens and other sequences.",
        ("ablation",),
        paper.meta_router,
        "Training long enough for the gate to move.",
    ),
    Claim(
        "Control: an RBF operator that mixes",
        "Not in the paper, whose RBF operator is one-hot on the token itself: one that mixes tokens is the better.",
        "Kernel mixing with a bandwidth from data against the value projection alone, in the same places.",
        ("ablation",),
        paper.rbf,
        "More features, or kernels over positions.",
    ),
    Claim(
        "Mixed training",
        "28.56 against 27.51 test perplexity for v2: a batch of another task at a quarter of the steps costs little; "
        "read as: five per cent at the most.",
        "The same for v2 and its baseline, with sentiment and ListOps as further tasks on heads of their own. Their "
        "batches come on top of those of text; FLOPs leave them out.",
        ("mixed",),
        paper.mixed,
        "The published size and mixture.",
    ),
    Claim(
        "Ours: what the demo shows",
        "The recipe `chiar` is as good as its twin, within two per cent of perplexity, in two minutes of training.",
        "Both as `make demo` trains them, on the plays of Shakespeare, each at the better of two learning rates, four "
        "seeds.",
        ("demo_seeds",),
        own.of_the_demo,
        "More seeds, or more than two minutes, after which runs are less a matter of chance.",
    ),
    Claim(
        "Ours: full attention's quality, within two per cent, at half of its attention",
        "At most two per cent of perplexity for half of the attention FLOPs, on text of the kind it was trained on and "
        "on another, pre-norm and post-norm.",
        "Attention in the upper two of five layers against full attention in four, which has as many parameters, all "
        "with a short convolution, each at the best of its learning rates, six seeds.",
        ("half",),
        own.half_of_the_attention,
        "More tokens and longer texts: models of this size, trained for this long, have little to lose without it.",
        ("reviews", "budgets"),
    ),
    Claim(
        "Ours: full attention's quality, within two per cent, at a quarter of its attention",
        "At most two per cent of perplexity for a quarter of the attention FLOPs, on both texts, by tokens that a "
        "router picks.",
        "The router `benefit` gives attention to half of the tokens in the upper two of five layers; full attention "
        "in four layers, and in five with narrower feed-forward networks, has as many parameters. All with a short "
        "convolution, each at the best of its learning rates, six seeds.",
        ("half",),
        own.a_quarter_of_it,
        "More tokens and longer texts: models of this size, trained for this long, have little to lose without it.",
        ("reviews", "budgets"),
    ),
    Claim(
        "Ours: tokens that recur, in twice the layers and over windows twice as long",
        "At most two per cent of perplexity for at most a quarter of the attention FLOPs.",
        "The recipe `chiar` with eleven layers against full attention with eight, which is as large, on source code in "
        "windows of 512 tokens, each at the best of three learning rates, three seeds.",
        ("deeper",),
        own.in_twice_the_layers,
        "Larger models, more tokens and longer texts.",
    ),
    Claim(
        "Ours: tokens that recur against random ones",
        "Attention is worth more at tokens that recur, those first that occurred last the shortest while ago, than at "
        "as many others.",
        "The same layers with half of the tokens routed to attention, by four routers, at budgets of 37.5, 25 and "
        "12.5 % of full attention; and with tokens that recur against random ones of the next larger budget, since as "
        "many tokens do not take as much attention: what each takes is told. Source code.",
        ("budgets",),
        own.who_gets_it,
        "Texts in which what is looked up is no earlier token of the same name.",
    ),
    Claim(
        "Ours: chosen tokens of more layers, or all tokens of fewer",
        "Attention is worth more at tokens that recur than in whole layers, which are fewer.",
        "A quarter of the attention as half of the tokens of two layers, or all of one; three quarters as half of the "
        "tokens of two layers and all of two more, or all of three; and with chosen tokens at budgets at which they "
        "take less attention than the layers. Feed-forward networks make all models as large. "
        "Source code.",
        ("budgets",),
        own.tokens_or_layers,
        "More layers, and budgets at which whole layers cannot be had.",
    ),
    Claim(
        "Ours: the DCT against no operator",
        "With the DCT perplexity is at least two per cent lower than with nothing in its place, with the router and "
        "the convolution that serve best.",
        "The router `recurrence` between attention and the DCT, and between attention and nothing, in the same layers, "
        "with the DCT in the others too, and with nothing. Source code.",
        ("alternatives",),
        own.dct_for_nothing,
        "A spectral operator that mixes tokens.",
    ),
    Claim(
        "Ours: a short convolution in every layer",
        "It lowers perplexity, of the recipe `chiar` and of full attention.",
        "Both with a causal convolution over four tokens, channel by channel, and without. Source code.",
        ("alternatives",),
        own.short_convolution,
        "Larger models, whose attention has heads to spare for the tokens before.",
    ),
    Claim(
        "Ours: only routed tokens as keys",
        "It costs two per cent of perplexity at the most if a token that attends sees only those that do so too, which "
        "halves the attention that is left, and the cache.",
        "The router `benefit` in the same layers with the same share of the tokens, with all keys and with routed "
        "ones; six seeds.",
        ("half",),
        own.routed_keys,
        "Longer texts, and a score that knows what a token is worth to others as a key.",
    ),
    Claim(
        "Ours: recall with less of the attention",
        "A key is answered with its value, within two points of full attention, with half as many layers that attend, "
        "with one of six, and with the tokens of that one that recur.",
        "Multi-query associative recall, four pairs in 32 tokens, models of 64 channels and one head, six seeds. A run "
        "learns it or does not: the claim holds where it is learned with every seed, and fails where it is learned "
        "with half of them at most. A key that is asked for is a token that recurs, so that `recurrence` finds the "
        "questions by itself; at 12.5 % random tokens, and every second one, reach half of them.",
        ("recall",),
        of_recall.recall,
        "More pairs, longer sequences, and training until every arm has learned what it can.",
    ),
    Claim(
        "Ours: a dense start",
        "A router that learns, `benefit`, answers more keys if all tokens attend at first.",
        "The share of tokens that attend is lowered evenly over the first two fifths of training, down to that of the "
        "same arm without it: half of the tokens of one layer of six. Six seeds.",
        ("recall",),
        of_recall.dense_start,
        "Training until every arm has learned what it can.",
    ),
    Claim(
        "Ours: all keys for chosen tokens, or near keys for all tokens",
        "The same attention is worth more at tokens that recur, which see all earlier ones, than spread over all "
        "tokens, which see the last few.",
        "In the same layer the tokens that recur, and a sliding window of 102 of 256 tokens, which is meant to take as "
        "much attention as these did in trials. Source code.",
        ("alternatives",),
        own.far_or_near,
        "Longer texts, of which windows see less and less.",
    ),
    Claim(
        "Ours: attention for the tokens of one layer of six that recur",
        "The recipe `chiar`: at most two per cent of perplexity for at most a quarter of the attention FLOPs, on "
        "source code, which needs attention, and on reviews and other prose, which need less of it.",
        "In the fourth of six layers the tokens that occurred before attend; full attention in four layers is as "
        "large. All with a short convolution, each at the best of three learning rates (reviews: of two), three seeds.",
        ("budgets", "reviews"),
        own.tokens_that_recur,
        "Larger models and longer texts, in which nearly all tokens recur.",
    ),
    Claim(
        "Ours: tokens that recur against a score that learns what attention gains",
        "Attention is worth more at tokens that recur than at as many that a learned score picks.",
        "Half of the tokens of one layer of six, by `recurrence` and by `benefit`, whose score is fitted to what "
        "attention gains at a token; also by a hash of the token, and random tokens of a model that explores as "
        "`benefit` does. Source code.",
        ("alternatives",),
        own.who_else,
        "Texts in which what is looked up is no earlier token of the same name.",
    ),
)
