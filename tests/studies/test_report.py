"""The page of results: every number has its file, and what is missing is named."""

import json
import re
from dataclasses import asdict, replace

import pytest
from tests.studies.test_findings import LARGE

from chiaroscuro.studies import STUDIES, render_finished, report
from chiaroscuro.studies.claims import CLAIMS
from chiaroscuro.studies.evidence import finished
from chiaroscuro.studies.runner import Unfinished


def test_without_results_the_page_names_what_is_missing(tmp_path):
    place = (LARGE, tmp_path / "results", tmp_path / "docs" / "results.md")
    with pytest.raises(ValueError, match="no results at"):
        report(*place)
    place[1].mkdir()
    page = report(*place)
    assert page.count("**Not finished.** To be run") == len(CLAIMS)
    assert "`chiaroscuro study ablation` (0 of the 65 runs of study 'ablation' are there), `chiaroscuro" in page
    assert {name for claim in CLAIMS for name in claim.needs + claim.takes_too} == {study.name for study in LARGE}


def test_the_table_and_the_figures_are_written_with_the_page(write, tmp_path):
    study = STUDIES["controls"]
    write(study)
    for path in (tmp_path / "results" / "controls" / "runs").iterdir():
        shares = {"3": {"dct": 0.5, "attention": 0.5}}
        curve = [{"step": step, "loss": 5.0, "routing": shares} for step in (1, 2)]
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
    def run(number: int, ratio: float, milliseconds: float, series: str = "run") -> None:
        case = {
            "name": "layer",
            "seconds": {"ours": milliseconds / 1000, "full attention": 0.2},
            "ratio": {"full attention": [ratio, ratio - 0.01, ratio + 0.01]},
            "predicted": {"full attention": 0.5},
            "at_most": {"full attention": 0.65},
            "executed_to_planned": {"ours": 1.0 + number / 1000},
        }
        made = {"commit": "abc", "machine": "a machine", "torch": "2"}
        folder = tmp_path / "results" / "bench" / f"{series}-{number}"
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
    assert "The recipe `chiar` and its twin, given" not in written
    run(9, 0.7, 140.0, "chiar")
    written = report([], tmp_path / "results", page)
    assert "Executed FLOPs are 1.001 to 1.003 of those planned.\n\nThe recipe `chiar` and its twin, given" in written
    assert "chiar-9: [layer](../results/bench/chiar-9/layer.json).\n" in written
    lengths = tmp_path / "results" / "bench" / "lengths"
    lengths.mkdir()
    made = {"commit": "def", "machine": "a machine", "torch": "2"}
    (lengths / "layer.json").write_text(json.dumps({"versions": made, "cases": [{"rounds": 5}]}))
    picture = "![layer: time by sequence length](../results/bench/lengths/layer.png)"
    told = "a machine; torch 2; commit def; 5 rounds a length."
    assert f"{picture}\n\n{told}\n" in report([], tmp_path / "results", page)
