"""Where does the paper's architecture win? Text too small for the model, symbols, and sentiment; large text is the
study `ablation`."""

from dataclasses import replace
from typing import Any

from chiaroscuro.studies.ablation import PLAIN, PLAN, SEEDS
from chiaroscuro.studies.study import Arm, Study
from chiaroscuro.training import TrainingPlan

_RATES = (3e-4, 1e-3, 3e-3)
# In `ablation` the post-norm baseline stalls at the largest of these, which is the best of the routed arms.
_FINER_RATES = (3e-4, 1e-3, 1.7e-3, 3e-3)


def _arms(fields: dict[str, Any]) -> tuple[Arm, ...]:
    return (
        Arm("full attention, v1", "v1_full_attention", fields),
        Arm("DCT and attention, threshold", "v1_dct_attention", fields),
        Arm("full attention", "full_attention", fields | PLAIN),
        Arm("entropy", "spectral", fields | PLAIN),
    )


# A tenth of the tokens of the large text, nine times over: the paper's small text, WikiText-2, would be seen but once.
SMALL_TEXT = Study(
    name="small_text",
    question="Text that the model sees nine times: does routing hurt there, as the paper says?",
    plan=replace(PLAN, data="wikitext-validation", eval_tokens=None),
    arms=_arms({"dropout": 0.1}),
    learning_rates=_FINER_RATES,
    seeds=SEEDS,
)

LISTOPS_FLAT = Study(
    name="listops_flat",
    question="The paper's ListOps: one operator over four to eight digits. Does routing hurt there, as the paper says?",
    plan=TrainingPlan(
        task="listops_flat",
        data="listops_flat",
        steps=3000,
        batch_size=64,
        seq_len=16,
        warmup_steps=300,
        save_every=500,
        fields=PLAN.fields,
    ),
    arms=_arms({"dropout": 0.0}),
    learning_rates=_FINER_RATES,
    seeds=SEEDS,
)

IMDB = Study(
    name="imdb",
    question="Sentiment of 25,000 unseen reviews, trained from scratch on nine tenths of the other 25,000.",
    plan=TrainingPlan(
        task="imdb",
        data="imdb",
        vocab_size=8192,
        steps=1400,
        batch_size=32,
        seq_len=256,
        warmup_steps=140,
        save_every=200,
        fields={"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4},
    ),
    arms=_arms({"dropout": 0.0}),
    learning_rates=_RATES,
    seeds=SEEDS,
)

MIXED = Study(
    name="mixed",
    question="A batch of sentiment or ListOps at a quarter of the steps: what does it cost the language model?",
    plan=PLAN,
    arms=tuple(
        Arm(f"{name}{ending}", recipe, {"dropout": 0.0}, plan)
        for name, recipe in (("full attention, v2", "v2_full_attention"), ("v2, causal MetaRouter", "v2"))
        for ending, plan in (("", {}), (", mixed", {"mixed": {"imdb": "imdb", "listops_flat": "listops_flat"}}))
    ),
    learning_rates=_RATES,
    seeds=SEEDS,
)
