"""The page of results: its verdicts follow the numbers, and it says what is missing."""

import json
import math
import re
from dataclasses import asdict, replace

import pytest

from chiaroscuro.studies import STUDIES, Study, markdown, render_finished, report
from chiaroscuro.studies.claims import CLAIMS
from chiaroscuro.studies.evidence import Difference, difference, finished
from chiaroscuro.studies.findings import FAILS, HOLDS, OPEN, WEAKER
from chiaroscuro.studies.runner import Unfinished

LARGE = [study for study in STUDIES.values() if study.name != "smoke"]
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
                    }
                    for text in run.plan.test_on
                },
                "flops": {
                    "attention_ratio": ({"no attention": 0.0} | (attention or {})).get(run.arm, 0.375),
                    "total_ratio": 0.8,
                    "executed_ratio": 0.81,
                },
                "plan": asdict(run.plan),
                "versions": {"commit": "abc", "machine": "a machine"},
            }
            (folder / "runs" / f"{run.name}.json").write_text(json.dumps(result))

    return files


def plan_of(study: Study, arm: str, seed: int) -> dict[str, object]:
    rates = {each.name: study.rates_of(each)[1] for each in study.arms}
    return asdict(next(run.plan for run in study.repetitions(rates) if (run.arm, run.seed) == (arm, seed)))


def verdict(page: str, title: str) -> str:
    section = page.split(f". {title}\n", 1)[1].split("\n## ", 1)[0]
    return section.split("**Verdict: ", 1)[1].split(".**", 1)[0]


def test_without_results_the_page_names_what_is_missing(tmp_path):
    place = (LARGE, tmp_path / "results", tmp_path / "docs" / "results.md")
    with pytest.raises(ValueError, match="no results at"):
        report(*place)
    place[1].mkdir()
    page = report(*place)
    assert page.count("**Not finished.** To be run") == len(CLAIMS)
    assert "`chiaroscuro study ablation` (0 of the 65 runs of study 'ablation' are there), `chiaroscuro" in page
    assert {name for claim in CLAIMS for name in claim.needs + claim.takes_too} == {study.name for study in LARGE}


def test_verdicts_follow_the_numbers(write, tmp_path):
    for study in LARGE:
        write(study)
    routed, full = "DCT and attention, threshold", "full attention, v1"

    def place(*names: str):
        """These studies alone, which are sooner read than all."""
        return [STUDIES[name] for name in names], tmp_path / "results", tmp_path / "results.md"

    quality = place("ablation", "controls", "rates")
    assert verdict(report(*quality), "Control: is entropy a better router than chance?") == OPEN

    write(STUDIES["rates"], {routed: 3.2})
    assert verdict(report(*quality), "A 45 % better perplexity").startswith(
        f"{HOLDS} against the published baseline; not settled against the pre-norm one"
    )
    write(STUDIES["controls"], {"entropy": 3.2})
    assert verdict(report(*quality), "A 45 % better perplexity") == HOLDS
    write(STUDIES["rates"], {routed: 3.8})
    assert verdict(report(*quality), "A 45 % better perplexity") == "holds in direction, not in size"
    write(STUDIES["rates"], {full: 3.2})
    assert verdict(report(*quality), "A 45 % better perplexity") == FAILS

    title = "Control: is entropy a better router than chance?"
    assert verdict(report(*quality), title) == f"{HOLDS} with pre-norm; {OPEN} with post-norm"
    for loss, noise in ((3.2, 0.01), (3.98, 0.0)):
        write(STUDIES["controls"], {"random": loss}, noise=noise)
        assert verdict(report(*quality), title) == f"{FAILS} with pre-norm; {OPEN} with post-norm"

    write(STUDIES["controls"], {"entropy": 3.2})
    for loss, expected in ((4.0, HOLDS), (3.2, OPEN), (3.1, FAILS)):
        write(STUDIES["vocabulary"], {"entropy": 3.2, "hash of the token": loss})
        found = verdict(report(*place("ablation", "controls", "vocabulary")), title)
        assert found == f"{HOLDS} with pre-norm; {OPEN} with post-norm; {expected} against a hash of the token"

    regime = place("ablation", "controls", "rates", "small_text", "listops_flat", "imdb")
    write(STUDIES["rates"], {routed: 3.2})
    write(STUDIES["small_text"], {routed: 4.5})
    write(STUDIES["listops_flat"], accuracy={routed: 0.4})
    write(STUDIES["imdb"], noise=0.001)
    places = "large text: {}; small text: {}; ListOps: {}; sentiment: {}"
    assert verdict(report(*regime), "An operating regime") == places.format(HOLDS, HOLDS, HOLDS, HOLDS)
    write(STUDIES["rates"], {routed: 3.8})
    write(STUDIES["small_text"], {routed: 3.5})
    write(STUDIES["listops_flat"], accuracy={routed: 0.7})
    write(STUDIES["imdb"], noise=0.1)
    assert verdict(report(*regime), "An operating regime") == places.format(WEAKER, FAILS, WEAKER, OPEN)
    # No difference: a claim of a size fails where its interval is too narrow to hold it.
    write(STUDIES["small_text"], noise=0.2)
    for noise, expected in ((0.01, FAILS), (0.3, OPEN)):
        write(STUDIES["listops_flat"], noise=noise)
        assert verdict(report(*regime), "An operating regime") == places.format(WEAKER, OPEN, expected, OPEN)

    routers = place("ablation", "collapse")
    starved = {"1": {"dct": 1.0, "rbf": 0.0}, "2": {"rbf": 0.5, "attention": 0.5}}
    nearly = {"1": {"dct": 0.98, "rbf": 0.02}, "2": {"rbf": 0.5, "attention": 0.5}}
    arms = ("three operators, soft", "three operators, hard")
    groups = "an operator starves under learned routers: {} with an RBF operator that mixes; {} with one that does not"
    for routing, noise, expected in (
        ({}, 0.01, FAILS),
        (dict.fromkeys(arms, starved), 0.01, HOLDS),
        (dict.fromkeys(arms[:1], starved), 0.01, "in 3 of 6 runs"),
        (dict.fromkeys(arms[:1], starved), 0.4, "in 2 to 3 of 6 runs"),  # the last seed at a standstill
        (dict.fromkeys(arms, nearly), 0.01, "in 0 to 6 of 6 runs"),
    ):
        write(STUDIES["ablation"], routing=routing, noise=noise)
        assert verdict(report(*routers), "Routing collapse") == groups.format(expected, FAILS)
    alike = {f"{arm}, RBF that mixes nothing": starved for arm in arms}
    write(STUDIES["ablation"])
    write(STUDIES["collapse"], routing=alike)
    assert verdict(report(*routers), "Routing collapse") == groups.format(FAILS, HOLDS)


def test_half_of_the_attention_is_as_good_where_all_four_intervals_lie_within_two_per_cent(write, tmp_path):
    title, study = "Ours: full attention's quality, within two per cent, at half of its attention", STUDIES["half"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    halves = ("whole layers, 50 %", "post-norm, whole layers, 50 %")
    # Six seeds of two arms scatter by 0.0056: an interval of 0.72 per cent to either side.
    for losses, expected in (((4.0, 4.01), HOLDS), ((4.0, 4.015), OPEN), ((4.0, 4.03), FAILS), ((4.018, 3.9), OPEN)):
        write(study, dict(zip(halves, losses, strict=True)), noise=0.003)
        assert verdict(report(*place), title) == expected


def test_a_router_is_held_against_random_tokens_over_three_budgets(write, tmp_path):
    title, study = "Ours: a router that is fitted to what attention gains", STUDIES["budgets"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for loss, expected in ((4.0, OPEN), (3.9, HOLDS), (4.1, FAILS)):
        write(study, {"benefit, 25 %": loss, "benefit, 37.5 %": loss})
        assert verdict(report(*place), title) == expected
    better = {"benefit, 25 %": 3.9, "benefit, 37.5 %": 3.9}
    write(study, better | {"random, explored, 25 %": 3.9})
    assert verdict(report(*place), title) == f"{HOLDS}; {OPEN} where random tokens are explored too"
    write(study, better | {"hash of the token, 25 %": 3.8})
    assert verdict(report(*place), title) == f"{HOLDS}; {FAILS} against a hash of the token"


def test_the_dct_is_held_against_nothing_in_its_place(write, tmp_path):
    title, study = "Ours: the DCT against no operator", STUDIES["budgets"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for loss, noise, expected in (
        (4.0, 0.02, OPEN),
        (4.0, 0.0, FAILS),
        (3.97, 0.0, HOLDS),
        (3.99, 0.0, WEAKER),
        (4.1, 0.02, FAILS),
    ):
        write(study, {"with the DCT, benefit, 25 %": loss}, noise=noise)
        assert verdict(report(*place), title) == expected


def test_routed_keys_are_held_against_all_keys_at_the_same_tokens_on_both_texts(write, tmp_path):
    title, study = "Ours: only routed tokens as keys", STUDIES["half"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    for loss, noise, expected in ((4.01, 0.003, HOLDS), (4.015, 0.003, OPEN), (4.03, 0.003, FAILS)):
        write(study, {"routed keys, benefit, 12.5 %": loss}, noise=noise)
        assert verdict(report(*place), title) == expected


def test_recall_holds_where_every_arm_at_half_of_the_attention_is_within_two_points(write, tmp_path):
    title, study = "Ours: recall at half of its attention", STUDIES["recall"]
    place = ([study], tmp_path / "results", tmp_path / "results.md")
    good = {"full attention": 0.99, "whole layers, 50 %": 0.98, "every other layer": 0.99, "benefit, 25 %": 0.99}
    write(study, accuracy=good, noise=0.002)
    page = report(*place)
    assert verdict(page, title) == HOLDS
    assert "(98.80 ± 0.20 %): whole layers, 50 %, every other layer, benefit, 25 %." in page
    write(study, accuracy=good | {"whole layers, 50 %": 0.96}, noise=0.002)
    assert verdict(report(*place), title) == FAILS
    write(study, accuracy=dict.fromkeys(good, 0.25), noise=0.002)  # where the twin cannot do it either
    assert verdict(report(*place), title) == OPEN


def test_mixed_training_costs_little_where_the_interval_ends_below_five_per_cent(write, tmp_path):
    place = ([STUDIES["mixed"]], tmp_path / "results", tmp_path / "results.md")
    for loss, expected in ((4.0, HOLDS), (4.045, OPEN), (4.1, FAILS), (3.5, HOLDS)):
        write(STUDIES["mixed"], {"v2, causal MetaRouter, mixed": loss})
        assert verdict(report(*place), "Mixed training") == expected


def test_the_table_and_the_figures_are_written_with_the_page(write, tmp_path):
    study = STUDIES["controls"]
    write(study)
    for path in (tmp_path / "results" / "controls" / "runs").iterdir():
        curve = [{"step": step, "loss": 5.0, "routing": ROUTED} for step in (1, 2)]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"curve": curve}))
    render_finished(LARGE, tmp_path / "results")
    written = [str(path.relative_to(tmp_path / "results")) for path in (tmp_path / "results").rglob("*.*")]
    figures = [f"controls/figures/{name}.png" for name in ("cost", "curves", "shares")]
    assert {"controls/table.md", "controls/table.json", *figures} <= set(written)


def test_every_number_has_its_file_and_every_row_of_a_table_its_cells(write, tmp_path):
    for study in LARGE:
        write(study)
    page = report(LARGE, tmp_path / "results", tmp_path / "docs" / "results.md")
    for study in LARGE:
        assert f"[{study.name}/table.md](../results/{study.name}/table.md)" in page
    assert page.count("commit abc") == len(LARGE)
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert len(tables) == 1 + len(CLAIMS)
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)


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


def test_where_accuracy_is_measured_every_arm_has_its_own_variance(write, tmp_path):
    study, folder = STUDIES["recall"], tmp_path / "results" / "recall"
    write(study, accuracy={"full attention": 0.99, "whole layers, 50 %": 0.99}, noise=0.001)
    for path in (folder / "runs").glob("random*_lr0.002_seed2.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"accuracy": 0.1}))
    found = difference(finished(study, folder), [("whole layers, 50 %", "full attention")])
    assert (found.low, found.high) == pytest.approx((-2.776 * 0.001 * (2 / 3) ** 0.5, 2.776 * 0.001 * (2 / 3) ** 0.5))


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
    page = report([study], tmp_path / "results", tmp_path / "results.md")
    assert verdict(page, "Complementarity") == OPEN


def test_a_study_with_an_arm_that_diverged_at_every_rate_says_so_and_where_its_data_were(write, tmp_path):
    study = STUDIES["vocabulary"]
    write(study)
    page = report([study], tmp_path / "results", tmp_path / "results.md")
    assert "Data: imdb (given as made up); 3,000,000 tokens" in page
    for run in study.search()[:2]:
        result = {"diverged": "at step 3", "plan": asdict(run.plan)}
        (tmp_path / "results" / "vocabulary" / "runs" / f"{run.name}.json").write_text(json.dumps(result))
    for needed in ("controls", "ablation"):
        write(STUDIES[needed])
    studies = [study, STUDIES["controls"], STUDIES["ablation"]]
    page = report(studies, tmp_path / "results", tmp_path / "results.md")
    assert "**Still to be run.** `chiaroscuro study vocabulary` at commit abc (" in page
    assert "entropy diverged at every learning rate: give it lower ones)" in page


def test_arms_whose_best_learning_rate_is_at_an_end_of_those_tried_are_named(write, tmp_path):
    study, of_controls = STUDIES["vocabulary"], STUDIES["controls"]
    place = ([study, of_controls], tmp_path / "results", tmp_path / "results.md")
    write(of_controls)  # the middle one of three
    write(study)  # the higher one of two
    told = "Best at the highest learning rate that was tried, so that a higher one may be better still: "
    page = report(*place)
    assert page.count(told) == page.count(f"{told}all arms.") == 1
    assert "Best at the lowest" not in page
    for run in study.search() + study.repetitions({"entropy": 2.5e-3}):
        path = tmp_path / "results" / "vocabulary" / "runs" / f"{run.name}.json"
        source = path if path.exists() else path.with_name(f"entropy_lr0.004_seed{run.seed}.json")
        result = json.loads(source.read_text()) | {"plan": asdict(run.plan)}
        if run.arm == "entropy":
            result["validation"] = {"loss": 3.0 if run.learning_rate == 2.5e-3 else 4.0}
        path.write_text(json.dumps(result))
    page = report(*place)
    assert f"{told}random; hash of the token." in page
    assert "Best at the lowest learning rate that was tried, so that a lower one may be better still: entropy." in page


def test_an_unfinished_study_is_named_and_one_of_another_plan_refused(write, tmp_path):
    study = STUDIES["controls"]
    write(study)
    runs = tmp_path / "results" / "controls" / "runs"
    other = replace(study, plan=replace(study.plan, batch_size=9))
    with pytest.raises(ValueError, match=r"made by another plan \(batch_size differ\)"):
        report([other], tmp_path / "results", tmp_path / "results.md")
    (runs / "random_lr0.003_seed2.json").unlink()
    with pytest.raises(Unfinished, match="54 of the 55 runs of study 'controls' are there"):
        finished(study, tmp_path / "results" / "controls")
    assert "| not finished: study `controls` |" in report([study], tmp_path / "results", tmp_path / "results.md")


def test_a_study_of_which_an_arm_diverged_at_every_rate_leaves_the_others_their_page(write, tmp_path):
    rates, small = STUDIES["rates"], STUDIES["small_text"]
    write(rates)
    write(small)
    for path in (tmp_path / "results" / "rates" / "runs").glob("full-attention-v1_*_seed1.json"):
        plan = json.loads(path.read_text())["plan"]
        path.write_text(json.dumps({"diverged": "at step 3", "plan": plan}))
    with pytest.raises(Unfinished, match="full attention, v1 diverged at every learning rate"):
        finished(rates, tmp_path / "results" / "rates")
    assert "### small_text" in report([rates, small], tmp_path / "results", tmp_path / "results.md")


def test_the_clock_tells_of_every_run_and_how_often_a_bound_was_missed(tmp_path):
    def run(number: int, ratio: float, milliseconds: float) -> None:
        case = {
            "name": "layer",
            "seconds": {"ours": milliseconds / 1000, "full attention": 0.2},
            "ratio": {"full attention": [ratio, ratio - 0.01, ratio + 0.01]},
            "predicted": {"full attention": 0.5},
            "at_most": {"full attention": 0.65},
            "executed_to_planned": {"ours": 1.0 + number / 1000},
        }
        made = {"commit": "abc", "machine": "a machine", "torch": "2"}
        folder = tmp_path / "results" / "bench" / f"run-{number}"
        folder.mkdir(parents=True)
        (folder / "layer.json").write_text(json.dumps({"versions": made, "cases": [case]}))

    page = tmp_path / "docs" / "results.md"
    (tmp_path / "results").mkdir()
    assert "Not measured: `chiaroscuro bench" in report([], tmp_path / "results", page)
    run(1, 0.64, 120.0)
    cells = "| layer | 120.0 | full attention | 200.0 | 0.640 (0.630 to 0.650) | 0.500 | 0.65, met |"
    assert cells in report([], tmp_path / "results", page)
    run(2, 0.66, 140.0)
    run(3, 0.63, 125.0)
    written = report([], tmp_path / "results", page)
    cells = "125.0 | full attention | 200.0 | 0.640, 0.660, 0.630 (0.620 to 0.670) | 0.500 | 0.65, missed in 1 of 3 |"
    assert cells in written
    assert "run-2: [layer](../results/bench/run-2/layer.json); run-3: [layer]" in written
    assert "Executed FLOPs are 1.001 to 1.003 of those planned." in written
    lengths = tmp_path / "results" / "bench" / "lengths"
    lengths.mkdir()
    made = {"commit": "def", "machine": "a machine", "torch": "2"}
    (lengths / "layer.json").write_text(json.dumps({"versions": made, "cases": [{"rounds": 5}]}))
    picture = "![layer: time by sequence length](../results/bench/lengths/layer.png)"
    told = "a machine; torch 2; commit def; 5 rounds a length."
    assert f"{picture}\n\n{told}\n" in report([], tmp_path / "results", page)


def test_a_study_is_told_where_its_texts_lie_and_takes_no_others():
    study = STUDIES["controls"]
    study = replace(study, plan=replace(study.plan, test_on={"novel": "absent.txt", "poem": "poem.txt"}))
    assert study.on(texts={"novel": "here.txt"}).plan.test_on == {"novel": "here.txt", "poem": "poem.txt"}
    assert study.on("folder", {}).plan.test_on == study.plan.test_on
    with pytest.raises(ValueError, match="study 'controls' does not test on 'essay'"):
        study.on(texts={"essay": "essay.txt"})


def test_a_study_moved_to_other_data_takes_it_for_further_tasks_too():
    moved = STUDIES["mixed"].on("folder")
    assert moved.plan.data == "folder"
    assert [arm.plan["mixed"] for arm in moved.arms if arm.plan["mixed"]] == [
        {"imdb": "folder", "listops_flat": "listops_flat"}
    ] * 2
