"""Intervals over seeds, and what is concluded from them."""

import json
import math
from dataclasses import asdict

import pytest
from tests.studies.test_findings import verdict

from chiaroscuro.studies import STUDIES, Study, markdown, report
from chiaroscuro.studies.evidence import Difference, difference, finished
from chiaroscuro.studies.findings import OPEN


def plan_of(study: Study, arm: str, seed: int) -> dict[str, object]:
    rates = {each.name: study.rates_of(each)[1] for each in study.arms}
    return asdict(next(run.plan for run in study.repetitions(rates) if (run.arm, run.seed) == (arm, seed)))


def test_an_interval_is_that_of_all_arms_together_and_of_one_that_scatters_its_own(write, tmp_path):
    study, folder = STUDIES["controls"], tmp_path / "results" / "controls"
    write(study, {"entropy": 3.9}, noise=0.01)
    found = difference(finished(study, folder), [("entropy", "random")])
    # Each of 11 arms has a variance of 0.01 ** 2 with two degrees of freedom; Student's t of 22 is 2.074.
    reach = 2.074 * 0.01 * (2 / 3) ** 0.5
    assert found.mean == pytest.approx(math.expm1(-0.1), abs=1e-6)
    assert (found.low, found.high) == pytest.approx((math.expm1(-0.1 - reach), math.expm1(-0.1 + reach)), abs=1e-5)
    assert found.better
    two = difference(finished(study, folder), [("entropy", "random"), ("learned", "interleaved")])
    assert two.mean == pytest.approx(math.expm1(-0.05), abs=1e-6)
    assert two.high == pytest.approx(math.expm1(-0.05 + reach / 2**0.5), abs=1e-5)

    for seed, path in enumerate(sorted((folder / "runs").glob("random_lr0.003*"))):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"loss": 4.0 + (0.5, -0.5, 0.0)[seed]}))
    scattered = difference(finished(study, folder), [("entropy", "random")])
    reach = 4.303 * ((0.5**2 + 0.01**2) / 3) ** 0.5
    assert scattered.high == pytest.approx(math.expm1(-0.09 + reach), rel=1e-3)
    others = difference(finished(study, folder), [("entropy", "interleaved")])
    assert others.high == pytest.approx(math.expm1(-0.1 + 2.086 * 0.01 * (2 / 3) ** 0.5), abs=1e-5)


def test_without_pooling_an_interval_is_that_of_two_arms_alone(write, tmp_path):
    study, folder = STUDIES["controls"], tmp_path / "results" / "controls"
    write(study, {"entropy": 3.9}, noise=0.01)
    found = difference(finished(study, folder), [("entropy", "random")], pooled=False)
    # By Welch: equal variances of three seeds each have four degrees of freedom, of which Student's t is 2.776.
    assert found.high == pytest.approx(math.expm1(-0.1 + 2.776 * 0.01 * (2 / 3) ** 0.5), abs=1e-5)
    for seed, path in enumerate(sorted((folder / "runs").glob("random_lr0.003*"))):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"loss": 4.0 + (0.5, -0.5, 0.0)[seed]}))
    found = difference(finished(study, folder), [("entropy", "random")], pooled=False)
    assert found.high == pytest.approx(math.expm1(-0.09 + 4.303 * ((0.5**2 + 0.01**2) / 3) ** 0.5), rel=1e-3)


def test_arms_that_scatter_do_not_hide_each_other(write, tmp_path):
    study, folder = STUDIES["controls"], tmp_path / "results" / "controls"
    write(study, {"entropy": 3.9}, noise=0.01)
    before = difference(finished(study, folder), [("entropy", "interleaved")])
    for path in (folder / "runs").glob("learned*_lr0.003_seed2.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"loss": 5.0}))
    for path in (folder / "runs").glob("random*_lr0.003_seed2.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"loss": 5.0}))
    after = difference(finished(study, folder), [("entropy", "interleaved")])
    assert after.high - after.low == pytest.approx(before.high - before.low, rel=0.1)


def test_an_arm_with_seeds_enough_has_its_own_variance(write, tmp_path):
    study, folder = STUDIES["half"], tmp_path / "results" / "half"
    write(study, {"benefit, 25 %": 3.9}, noise=0.01)
    done = finished(study, folder)
    found = difference(done, [("benefit, 25 %", "full attention")])
    # The variance of 0, 1, ... 5 is 3.5; Student's t of ten degrees of freedom is 2.228.
    assert found.high == pytest.approx(math.expm1(-0.1 + 2.228 * 0.01 * (2 * 3.5 / 6) ** 0.5), abs=1e-5)
    assert str(found) == str(difference(done, [("benefit, 25 %", "full attention")], pooled=False))


def test_the_first_seeds_can_be_left_out(write, tmp_path):
    study, folder = STUDIES["half"], tmp_path / "results" / "half"
    write(study, {"benefit, 25 %": 3.9}, noise=0.01)
    for path in (folder / "runs").glob("benefit-25-_lr0.0063_seed[012].json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"loss": 5.0}))
    found = difference(finished(study, folder), [("benefit, 25 %", "full attention")], skipped=3)
    assert found.mean == pytest.approx(math.expm1(-0.1), abs=1e-6)
    # By Welch: equal variances of three seeds each have four degrees of freedom, of which Student's t is 2.776.
    assert found.high == pytest.approx(math.expm1(-0.1 + 2.776 * 0.01 * (2 / 3) ** 0.5), abs=1e-5)


def test_where_accuracy_is_measured_every_arm_has_its_own_variance(write, tmp_path):
    study, folder = STUDIES["recall"], tmp_path / "results" / "recall"
    write(study, accuracy={"full attention": 0.99, "whole layers, 50 %": 0.99}, noise=0.001)
    for path in (folder / "runs").glob("random*_lr0.002_seed2.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"accuracy": 0.1}))
    found = difference(finished(study, folder), [("whole layers, 50 %", "full attention")])
    reach = 2.228 * 0.001 * (2 * 3.5 / 6) ** 0.5  # of six seeds each, whose variance is 3.5
    assert (found.low, found.high) == pytest.approx((-reach, reach), rel=1e-3)


def test_as_good_is_an_interval_within_the_margin():
    for low, high, is_accuracy, expected in (
        (-0.05, 0.009, False, True),
        (-0.05, 0.02, False, None),
        (0.011, 0.02, False, False),
        (-0.009, 0.05, True, True),
        (-0.02, 0.05, True, None),
        (-0.05, -0.011, True, False),
    ):
        assert Difference((low + high) / 2, low, high, is_accuracy).within(0.01) is expected


def test_of_an_arm_that_diverged_with_one_seed_the_table_says_so_and_nothing_is_concluded(write, tmp_path):
    study, folder = STUDIES["controls"], tmp_path / "results" / "controls"
    write(study, {"entropy": 3.5})
    (folder / "runs" / "entropy_lr0.003_seed1.json").write_text(
        json.dumps({"diverged": "training diverged at step 3", "plan": plan_of(study, "entropy", 1)})
    )
    done = finished(study, folder)
    assert (done.table["entropy"]["diverged"], len(done.table["entropy"]["loss"]["values"])) == (1, 2)
    assert "| entropy (1 diverged) |" in markdown(study, list(done.table.values()))
    found = difference(done, [("entropy", "random")])
    assert not found.better
    assert not found.worse
    assert str(found) == "-39.3 % [not known]"
    page = report([study], tmp_path / "results", tmp_path / "results.md")
    assert verdict(page, "Complementarity") == OPEN
    assert "| controls | entropy | 33.45 ± 0.47 (1 diverged) |" in page
