"""What the tests of results share: the files of a study that was never run."""

import json
from dataclasses import asdict

import pytest

from chiaroscuro.studies import Study
from chiaroscuro.studies.study import StudyRun


@pytest.fixture
def write(tmp_path):
    """Make the files of a study in which each arm has a loss of its own and each seed its share of noise. accuracy: of
    an arm, or of each of its seeds."""

    def files(study: Study, loss=None, accuracy=None, routing=None, noise=0.01, attention=None) -> None:
        folder = tmp_path / "results" / study.name
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        (folder / "study.json").write_text(json.dumps({"code": "c", "data": "d", "commit": "abc"}))
        best = {arm.name: study.rates_of(arm)[1] for arm in study.arms}
        runs = study.search() + study.repetitions(best)
        even = {run.arm: evenly(run) for run in runs}
        for run in runs:
            value = (loss or {}).get(run.arm, 4.0) + noise * run.seed
            right = (accuracy or {}).get(run.arm, 0.8)
            right = right[study.seeds.index(run.seed)] if isinstance(right, list) else right - noise * run.seed
            right = None if study.plan.task == "lm" else right
            tuned = run.learning_rate == best[run.arm]
            routed = (routing or {}).get(run.arm, even[run.arm])
            part = ({"no attention": 0.0} | (attention or {})).get(run.arm, 0.25)
            flops = {"attention_ratio": part, "total_ratio": 0.8, "executed_ratio": 0.81}
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
                "routing": routed,
                "validation": {"loss": value + (not tuned), "accuracy": right and right * tuned},
                "test_on": {
                    text: {
                        "loss": value + 1,
                        "perplexity": 2.718281828 ** (value + 1),
                        "flops": flops,
                        "routing": routed,
                    }
                    for text in run.plan.test_on
                },
                "flops": flops,
                "plan": asdict(run.plan),
                "curve": [{"step": 1, "loss": value}],
                "versions": {"commit": "abc", "machine": "a machine"},
            }
            (folder / "runs" / f"{run.name}.json").write_text(json.dumps(result))

    return files


def evenly(run: StudyRun) -> dict[str, dict[str, float]]:
    """Of each layer with a choice, as many tokens to each operator."""
    layers = enumerate(run.plan.config({}).layer_operators or [])
    return {str(index): dict.fromkeys(names, 1 / len(names)) for index, names in layers if len(names) > 1}
