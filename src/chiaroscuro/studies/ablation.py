"""The paper's ablation and the controls that it lacks, on one large text, at a size that two cores can train."""

from typing import Any

from chiaroscuro.studies.study import Arm, Study
from chiaroscuro.training import TrainingPlan

PLAN = TrainingPlan(
    data="imdb",
    vocab_size=2048,
    steps=1500,
    batch_size=8,
    seq_len=256,
    warmup_steps=150,
    eval_tokens=200_000,
    save_every=250,
    fields={"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4},
)
SEEDS = (0, 1, 2)
PLAIN = {"short_convolution": 0, "feed_forward": "shared"}  # as in the paper, so that only what is routed differs
_NO_DROPOUT = {"dropout": 0.0}  # one pass over the text: there is nothing to overfit
_WITHOUT_MIXING = {"layer_operators": [["dct"], ["dct", "linear"], ["linear", "attention"], ["attention"]]}


def _spectral(name: str, fields: dict[str, Any] | None = None) -> Arm:
    return Arm(name, "spectral", PLAIN | (fields or {}))


def _beside_attention(operator: str) -> dict[str, list[list[str]]]:
    """The layers of `spectral` with `operator` in place of the DCT."""
    return {"layer_operators": [[operator], [operator, "attention"], [operator, "attention"], ["attention"]]}


# Every arm starts at the same scale: a norm follows the embedding except where the name says otherwise. The steps of
# the second arm are those at which it has executed the training FLOPs of "entropy" (0.877 of full attention's).
CONTROLS = Study(
    name="controls",
    question="At half of the attention, what do the entropy and the DCT contribute?",
    plan=PLAN,
    arms=(
        Arm("full attention", "full_attention", PLAIN),
        Arm("full attention, FLOPs of entropy", "full_attention", PLAIN, {"steps": 1316}),
        Arm("full attention, no embedding norm", "full_attention", PLAIN | {"embedding_norm": False}),
        _spectral("two attention layers", {"layer_operators": [["none"], ["attention"], ["none"], ["attention"]]}),
        _spectral("entropy"),
        _spectral("random", {"router": "random"}),
        _spectral("interleaved", {"router": "interleaved"}),
        _spectral("learned", {"router": "learned"}),
        _spectral("entropy, identity for DCT", _beside_attention("identity")),
        _spectral("entropy, nothing for DCT", _beside_attention("none")),
        _spectral("learned, nothing for DCT", {"router": "learned"} | _beside_attention("none")),
    ),
    learning_rates=(1e-3, 3e-3, 1e-2),
    seeds=SEEDS,
)

# Nothing mixes tokens before the first layer that routes, so that there the entropy sends a token the same
# way wherever it stands, and a hash of its id does so too.
VOCABULARY = Study(
    name="vocabulary",
    question="Does the entropy route better than chance for what it says, or because a token always goes the same way?",
    plan=PLAN,
    arms=tuple(
        _spectral(name, {"router": router})
        for name, router in (("entropy", "threshold"), ("random", "random"), ("hash of the token", "hash"))
    ),
    learning_rates=(2.5e-3, 4e-3),
    seeds=SEEDS,
)

# The rows of the paper, post-norm as published. Its row "threshold with collapse regulariser" is not trained: the
# regulariser has no gradient through a threshold, so that it is "three operators, threshold" again.
ABLATION = Study(
    name="ablation",
    question="The paper's ablation, with its baselines tuned as hard as its variants.",
    plan=PLAN,
    arms=(
        Arm("full attention, v1", "v1_full_attention", _NO_DROPOUT),
        Arm("full attention, v1, embedding norm", "v1_full_attention", _NO_DROPOUT | {"embedding_norm": True}),
        Arm("DCT and attention, threshold", "v1_dct_attention", _NO_DROPOUT),
        Arm("DCT and attention, random", "v1_dct_attention", _NO_DROPOUT | {"router": "random"}),
        Arm("three operators, threshold", "v1_three_operator", _NO_DROPOUT),
        Arm("three operators, soft", "v1_three_operator", _NO_DROPOUT | {"router": "soft"}),
        Arm("three operators, hard", "v1_three_operator", _NO_DROPOUT | {"router": "hard"}),
        Arm(
            "three operators, soft, regularised",
            "v1_three_operator",
            _NO_DROPOUT | {"router": "soft", "collapse_weight": 0.01},
        ),
        Arm(
            "three operators, RBF that mixes nothing",
            "v1_three_operator",
            _NO_DROPOUT | _WITHOUT_MIXING,
        ),
        Arm("full attention, v2", "v2_full_attention", _NO_DROPOUT),
        Arm("v2, no MetaRouter", "v2", _NO_DROPOUT | {"meta_router": "none"}),
        Arm("v2, causal MetaRouter", "v2", _NO_DROPOUT),
        Arm("v2, the paper's MetaRouter (leaks)", "v2", _NO_DROPOUT | {"meta_router": "paper"}),
    ),
    learning_rates=(3e-4, 1e-3, 3e-3),
    seeds=SEEDS,
)

# At 0.003 the published baseline comes to a standstill, and its variants do best: between two rates of the grid above,
# three times apart, lies more than what was claimed. So near to where a model stops to train one seed says little.
RATES = Study(
    name="rates",
    question="Is the paper's gain one of quality, or one of the learning rates at which a model trains at all?",
    plan=PLAN,
    arms=tuple(arm for arm in ABLATION.arms if arm.name in ("full attention, v1", "DCT and attention, threshold")),
    learning_rates=(1e-3, 1.4e-3, 2e-3, 2.8e-3),
    seeds=SEEDS,
    tuning_seeds=len(SEEDS),
)

COLLAPSE = Study(
    name="collapse",
    question="Does a learned router give up an operator that is one-hot on the token itself, as the authors' RBF is?",
    plan=PLAN,
    arms=tuple(
        Arm(
            f"three operators, {router}, RBF that mixes nothing",
            "v1_three_operator",
            _NO_DROPOUT | {"router": router} | _WITHOUT_MIXING,
        )
        for router in ("soft", "hard")
    ),
    learning_rates=(1e-3, 3e-3),
    seeds=SEEDS,
)
