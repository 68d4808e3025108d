"""The paper's ablation and the controls that it lacks, on one text, at a size that two cores can train."""

from chiaroscuro.studies.study import Arm, Study
from chiaroscuro.training import TrainingPlan

_PLAN = TrainingPlan(
    data="shakespeare",
    vocab_size=4096,
    steps=1500,
    batch_size=16,
    seq_len=128,
    warmup_steps=150,
    save_every=250,
    fields={"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 4096},
)
_RATES = (3e-4, 1e-3, 3e-3)
_SEEDS = (0, 1, 2)
_DROPOUT = {"dropout": 0.0}

# What the routers of the recommended plan are worth, and the operator beside attention: every arm starts at the same
# scale.
CONTROLS = Study(
    name="controls",
    question="At half of the attention, what do the entropy and the DCT contribute?",
    plan=_PLAN,
    arms=(
        Arm("full attention", "full_attention"),
        Arm("two attention layers", "chiar", {"layer_operators": [["none"], ["attention"], ["none"], ["attention"]]}),
        Arm("entropy", "chiar"),
        Arm("random", "chiar", {"router": "random"}),
        Arm("interleaved", "chiar", {"router": "interleaved"}),
        Arm("learned", "chiar", {"router": "learned"}),
        Arm("learned, identity for DCT", "chiar", {"router": "learned", "dct_filter_start": 1.0}),
        Arm(
            "learned, nothing for DCT",
            "chiar",
            {
                "router": "learned",
                "layer_operators": [["none"], ["none", "attention"], ["none", "attention"], ["attention"]],
            },
        ),
    ),
    learning_rates=_RATES,
    seeds=_SEEDS,
)

# The rows of the paper, post-norm as published.
ABLATION = Study(
    name="ablation",
    question="The paper's ablation, with its baseline tuned as hard as its variants.",
    plan=_PLAN,
    arms=(
        Arm("full attention, post-norm", "v1_full_attention", _DROPOUT),
        Arm("full attention, post-norm, embedding norm", "v1_full_attention", _DROPOUT | {"embedding_norm": True}),
        Arm("full attention, pre-norm", "full_attention"),
        Arm("three operators, soft", "v1_three_operator", _DROPOUT | {"router": "soft"}),
        Arm("three operators, hard", "v1_three_operator", _DROPOUT | {"router": "hard"}),
        Arm("three operators, threshold", "v1_three_operator", _DROPOUT),
        Arm(
            "three operators, soft, regularised",
            "v1_three_operator",
            _DROPOUT | {"router": "soft", "collapse_weight": 0.01},
        ),
        Arm(
            "three operators, RBF that mixes nothing",
            "v1_three_operator",
            _DROPOUT | {"layer_operators": [["dct"], ["dct", "linear"], ["linear", "attention"], ["attention"]]},
        ),
        Arm("DCT and attention, threshold", "v1_dct_attention", _DROPOUT),
        Arm("DCT and attention, random", "v1_dct_attention", _DROPOUT | {"router": "random"}),
        Arm("v2, no MetaRouter", "v2", _DROPOUT | {"meta_router": "none"}),
        Arm("v2, causal MetaRouter", "v2", _DROPOUT),
        Arm("v2, the paper's MetaRouter (leaks)", "v2", _DROPOUT | {"meta_router": "paper"}),
    ),
    learning_rates=_RATES,
    seeds=_SEEDS,
)
