"""What the tests of results share: the files of a study that was never run."""

import json
from dataclasses import asdict

import pytest

from chiaroscuro.studies import Study

ROUTED = {"3": {"dct": 0.5, "attention": 0.5}}


@pytest.fixture
def write(tmp_path):
    """Make the files of a study in which each arm has a loss of its own and each seed its share of noise."""

    def files(study: Study, loss=None, accuracy=None, routing=None, noise=0.01, attention=None) -> None:
        folder = tmp_path / "results" / study.name
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        (folder / "study.json").write_text(json.dumps({"code": "c", "data": "d", "commit": "abc"}))
        best = {arm.name: study.rates_of(arm)[1] for arm in study.arms}
        runs = study.search() + study.repetitions(best)
        for run in runs:
            value = (loss or {}).get(run.arm, 4.0) + noise * run.seed
            right = (accuracy or {}).get(run.arm, 0.8) - noise * run.seed if study.plan.task != "lm" else None
            result = {
                "loss": value,
                "perplexity": None if right else 2.718281828**value,
                "bits_per_byte": None if right else 2.0,
                "accuracy": right,
                "steps": run.plan.steps,
                "tokens_seen": 3_000_000,
                "data": "made up",
                "train_seconds": 100.0,
                "parameters": 1000,
                "routing": (routing or {}).get(run.arm, ROUTED),
                "validation": {"loss": value + (run.learning_rate != best[run.arm])},
                "test_on": {
                    text: {
                        "loss": value + 1,
                        "perplexity": 2.718281828 ** (value + 1),
                        "flops": {"attention_ratio": 0.4},
                        "routing": (routing or {}).get(run.arm, ROUTED),
                    }
                    for text in run.plan.test_on
                },
                "flops": {
                    "attention_ratio": ({"no attention": 0.0} | (attention or {})).get(run.arm, 0.375),
                    "total_ratio": 0.8,
                    "executed_ratio": 0.81,
                },
                "plan": asdict(run.plan),
                "curve": [{"step": 1, "loss": value}],
                "versions": {"commit": "abc", "machine": "a machine"},
            }
            (folder / "runs" / f"{run.name}.json").write_text(json.dumps(result))

    return files
