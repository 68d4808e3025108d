"""Grids of runs: what is run, chosen, tabled, resumed and refused."""

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
import torch
from tests.helpers import PROCESSES

from chiaroscuro import studies
from chiaroscuro.studies import STUDIES, Arm, Places, Study, draw, markdown, rows, run_study, worker
from chiaroscuro.studies.origin import code_digest, origin_of
from chiaroscuro.studies.runner import OF_EVERY_RUN, Unfinished, read_result, read_results
from chiaroscuro.training import TrainingPlan, prepare

pytestmark = pytest.mark.usefixtures("cache")

SIZE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


PLACES = Places(Path("results"), Path("work"))


@pytest.fixture
def study(english) -> Study:
    return small_study(english)


def small_study(text: Path) -> Study:
    return Study(
        name="tiny",
        question="Does it work?",
        plan=TrainingPlan(
            data=str(text),
            vocab_size=300,
            steps=8,
            batch_size=2,
            seq_len=17,
            warmup_steps=1,
            save_every=2,
            fields=SIZE,
        ),
        arms=(Arm("full attention", "full_attention"), Arm("random", "chiar", {"router": "random"})),
        learning_rates=(1e-3, 1e-2),
        seeds=(0, 1),
    )


def as_worker(arguments: list[str], log: str) -> None:
    """The whole of a process of one run, as its command makes it."""
    torch.set_num_threads(1)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 2)
    plan, folder, result, code = arguments
    worker.run(Path(plan), Path(folder), Path(result), code)


@pytest.fixture
def forked_runs(monkeypatch) -> None:
    """Runs whose processes import nothing, which takes longer than they train."""

    def run(command: list[str], stdout: IO[str], **_: object) -> SimpleNamespace:
        assert command[1:3] == ["-m", "chiaroscuro.studies.worker"]
        process = PROCESSES.Process(target=as_worker, args=(command[3:], stdout.name))
        process.start()
        process.join()
        return SimpleNamespace(returncode=process.exitcode)

    monkeypatch.setattr("chiaroscuro.studies.runner.subprocess", SimpleNamespace(run=run))


@pytest.fixture
def places(tmp_path, monkeypatch) -> Places:
    monkeypatch.chdir(tmp_path)
    return PLACES


def made_up(study: Study, loss_of) -> dict:
    return {
        run.name: {
            "validation": {"loss": loss_of(run)},
            "loss": 2.0,
            "perplexity": 10.0 + run.seed,
            "bits_per_byte": 2.0,
            "accuracy": None,
            "steps": run.plan.steps,
            "test_on": {
                "novel": {"loss": 3.0 + run.seed, "perplexity": 20.0 + run.seed, "flops": {"attention_ratio": 0.4}}
            },
            "flops": {"attention_ratio": 0.5, "total_ratio": 0.9, "executed_ratio": 0.91},
            "parameters": 1000,
        }
        for run in study.search() + study.repetitions(dict.fromkeys((arm.name for arm in study.arms), 1e-2))
    }


def test_the_grid_is_searched_with_one_seed_and_repeated_at_the_best_rate(study):
    assert [(run.arm, run.learning_rate, run.seed) for run in study.search()] == [
        ("full attention", 1e-3, 0),
        ("full attention", 1e-2, 0),
        ("random", 1e-3, 0),
        ("random", 1e-2, 0),
    ]
    repeated = study.repetitions({"full attention": 1e-2, "random": 1e-3})
    assert [(run.arm, run.learning_rate, run.seed) for run in repeated] == [
        ("full attention", 1e-2, 1),
        ("random", 1e-3, 1),
    ]
    assert repeated[1].plan.fields == SIZE | {"router": "random"}
    assert len({run.name for run in study.search() + repeated}) == 6


def test_the_table_takes_the_rate_of_the_lowest_validation_loss_and_spreads_over_seeds(study):
    results = made_up(study, lambda run: 1 / run.learning_rate)
    table = rows(study, results)
    assert [row["learning_rate"] for row in table] == [1e-2, 1e-2]
    assert table[0]["perplexity"] == {
        "mean": 10.5,
        "deviation": pytest.approx(0.7071, abs=1e-4),
        "values": [10.0, 11.0],
    }
    assert "accuracy" not in table[0]
    page = markdown(study, table)
    assert "| full attention | 0.01 | 10.500 ± 0.707 | 2.000 ± 0.000 | 20.500 ± 0.707 | 0.500 ± 0.000 |" in page
    assert "| bits per byte | perplexity on novel | attention FLOPs |" in page
    assert table[0]["texts"]["novel"]["loss"]["values"] == [3.0, 4.0]
    assert "seeds 0, 1" in page


def test_an_arm_of_fewer_steps_has_fewer_training_flops(study):
    study = replace(study, arms=(*study.arms, Arm("short", "full_attention", plan={"steps": 4})))
    results = made_up(study, lambda run: 1 / run.learning_rate)
    assert [run.plan.steps for run in study.search()] == [8, 8, 8, 8, 4, 4]
    assert [row["training_flops"]["mean"] for row in rows(study, results)] == pytest.approx([0.91, 0.91, 0.455])


def test_several_seeds_may_choose_the_rate_and_an_arm_may_have_rates_of_its_own(study):
    low = Arm("low", "full_attention", learning_rates=(1e-4, 1e-3))
    study = replace(study, arms=(study.arms[0], low), seeds=(0, 1, 2), tuning_seeds=2)
    assert [(run.arm, run.learning_rate, run.seed) for run in study.search()[2:6]] == [
        ("full attention", 1e-2, 0),
        ("full attention", 1e-2, 1),
        ("low", 1e-4, 0),
        ("low", 1e-4, 1),
    ]
    # The larger rate is best with the first seed, and comes to a standstill with the second.
    losses = {(1e-2, 0): 1.0, (1e-2, 1): 9.0, (1e-4, 0): 3.0, (1e-4, 1): 3.0}
    results = made_up(study, lambda run: losses.get((run.learning_rate, run.seed), 2.0))
    best = study.best_rates(results)
    assert best == {"full attention": 1e-3, "low": 1e-3}
    assert [(run.arm, run.seed) for run in study.repetitions(best)] == [("full attention", 2), ("low", 2)]


def test_a_seed_at_a_standstill_is_told_of(study):
    results = made_up(study, lambda run: 1 / run.learning_rate)
    results["random_lr0.01_seed1"]["perplexity"] = 21.0
    table = rows(study, results)
    assert ["stalled" in row for row in table] == [False, True]
    assert "| random (1 stalled) | 0.01 | 15.500 ± 7.778 |" in markdown(study, table)


def test_a_rate_that_diverged_is_not_chosen(study):
    results = made_up(study, lambda run: 1 / run.learning_rate)
    for name in [name for name in results if "lr0.01" in name]:
        results[name] = {"diverged": "at step 3"}
    assert set(study.best_rates(results).values()) == {1e-3}
    assert set(study.best_rates(results | {"random_lr0.001_seed0": {"diverged": "at step 1"}})) == {"full attention"}


def test_where_accuracy_is_what_counts_it_chooses_the_rate_and_of_equal_ones_the_loss(study):
    results = made_up(study, lambda run: 1 / run.learning_rate)  # the larger rate has the lower loss
    for name, right in {"lr0.001": 0.4, "lr0.01": 0.3}.items():
        for result in (result for run, result in results.items() if name in run):
            result["validation"]["accuracy"] = right
    assert set(study.best_rates(results).values()) == {1e-2}
    by_accuracy = replace(study, chosen_by="accuracy")
    assert set(by_accuracy.best_rates(results).values()) == {1e-3}
    for result in results.values():
        result["validation"]["accuracy"] = 0.3
    assert set(by_accuracy.best_rates(results).values()) == {1e-2}


@pytest.mark.usefixtures("forked_runs")
def test_a_run_that_diverges_is_a_result_and_does_not_keep_other_arms_from_their_seeds(study, places):
    never_logged = {"steps": 400, "save_every": None}  # before it diverges
    lost = Arm("lost", "full_attention", plan={"weight_decay": 1e30} | never_logged)
    study = replace(study, arms=(study.arms[0], lost), learning_rates=(1e-3,))
    with pytest.raises(ValueError, match="lost diverged at every learning rate"):
        run_study(study, places, processes=2)
    assert (places.results / "runs" / "full-attention_lr0.001_seed1.json").exists()
    result = json.loads((places.results / "runs" / "lost_lr0.001_seed0.json").read_text())
    assert "with a learning rate of up to 0.001: use a smaller one" in result["diverged"]
    assert result["curve"] == []
    with pytest.raises(Unfinished, match="lost diverged at every learning rate"):
        read_results(study, places)


@pytest.fixture(scope="module")
def whole(english, tmp_path_factory):
    """A study of three runs, one by itself and then two at a time; its results, and the folder that they lie in."""
    folder = tmp_path_factory.mktemp("whole")
    study = small_study(english)
    study = replace(
        study,
        plan=replace(study.plan, steps=30, save_every=5),
        arms=study.arms[1:],
        learning_rates=(1e-3,),
        seeds=(0, 1, 2),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CHIAROSCURO_CACHE", str(folder / "cache"))
        return study, run_study(study, PLACES, processes=2), folder


def test_a_study_runs_to_its_table_and_is_not_run_again(whole, monkeypatch):
    study, results, folder = whole
    monkeypatch.chdir(folder)
    assert len(results) == 3
    for name, result in results.items():
        assert json.loads((PLACES.results / "runs" / f"{name}.json").read_text()) == result
        assert [line["step"] for line in result["curve"]] == list(range(1, 31))
        assert result["versions"]["command"].startswith("python -m chiaroscuro.studies.worker work/")
        assert str(folder) not in json.dumps(result | {"data": "", "plan": result["plan"] | {"data": ""}})
    pictures = draw(study, results, rows(study, results), PLACES.results / "figures")
    assert [path.name for path in pictures] == ["curves.png", "shares.png", "cost.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    stamps = {path: path.stat().st_mtime_ns for path in (PLACES.results / "runs").iterdir()}
    assert run_study(study, PLACES, processes=1) == results
    assert {path: path.stat().st_mtime_ns for path in (PLACES.results / "runs").iterdir()} == stamps


@pytest.fixture
def copied(whole, tmp_path, monkeypatch) -> Study:
    """The whole study, with its results and its work, where a test may change them."""
    study, _, folder = whole
    for place in (PLACES.results, PLACES.work):
        shutil.copytree(folder / place, tmp_path / place)
    monkeypatch.chdir(tmp_path)
    return study


def by_itself(study: Study, places: Places) -> None:
    """The whole of a process which, with its runs, is a group."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which what runs in the background is started without
    try:
        run_study(study, places, 2)
    except KeyboardInterrupt:
        sys.exit(130)


def begun(study: Study, places: Places, sign: str, count: int = 1) -> BaseProcess:
    """A study in a process of its own, as soon as that many files of its work have a name like `sign`."""
    process = PROCESSES.Process(target=by_itself, args=(study, places))
    process.start()
    deadline = time.monotonic() + 120
    while len(list(places.work.glob(sign))) < count:
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.05)
    return process


# Killed with its runs, or alone, so that what it began goes on beside the next. Only those that end it are forked.
@pytest.mark.usefixtures("forked_runs")
@pytest.mark.parametrize(("with_runs", "done_before"), [(True, 1), (False, 2)])
def test_killed_half_way_and_started_again_it_gives_the_same_table(with_runs, done_before, whole, copied):
    study, places, results = copied, PLACES, whole[1]
    for name in list(results)[done_before:]:
        (places.results / "runs" / f"{name}.json").unlink()
    shutil.rmtree(places.work)
    process = begun(study, places, "*/*seed[12]/checkpoints/*")  # of a run that was not done before
    os.killpg(process.pid, signal.SIGKILL) if with_runs else process.kill()
    process.join()
    done = {path: path.stat().st_mtime_ns for path in places.results.glob("runs/*.json")}
    assert 0 < len(done) < 3 or not with_runs
    resumed = run_study(study, places, processes=2)
    assert rows(study, resumed) == rows(study, results)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    for name, result in results.items():
        assert resumed[name]["curve"][-1] == result["curve"][-1]


@pytest.mark.usefixtures("forked_runs")
def test_results_of_other_code_data_or_plans_are_not_added_to(whole, copied, english, tmp_path, monkeypatch):
    study, places, done = copied, PLACES, whole[1]
    with pytest.raises(ValueError, match=r"was made by another plan \(batch_size differ\): move it away"):
        run_study(replace(study, plan=replace(study.plan, batch_size=3)), places, 1)
    changed = tmp_path / "changed.txt"
    changed.write_text(english.read_text())
    moved = replace(study, plan=replace(study.plan, data=str(changed)))
    assert run_study(moved, places, 1) == done
    shutil.rmtree(places.results / "runs")  # as of a study that was just begun, where empty folders are not kept
    assert len(run_study(replace(study, seeds=(0,)), places, 1)) == 1
    assert len(run_study(replace(study, seeds=(0, 3)), places, 1)) == 2
    changed.write_text(english.read_text() * 2)
    tokenizers = {path: path.read_bytes() for path in places.work.glob("*/tokenizer/*")}
    with pytest.raises(ValueError, match=r"results of other data, made by commit \w+"):
        run_study(moved, places, 1)
    assert {path: path.read_bytes() for path in places.work.glob("*/tokenizer/*")} == tokenizers
    monkeypatch.setattr("chiaroscuro.studies.origin.code_digest", lambda: "changed")
    with pytest.raises(ValueError, match="results of other code, made by commit"):
        run_study(study, places, 1)


@pytest.mark.usefixtures("forked_runs")
def test_what_other_code_or_data_began_is_not_gone_on_with(whole, copied):
    places, (name, first) = PLACES, next(iter(whole[1].items()))
    small = replace(copied, seeds=(0,))
    shutil.rmtree(places.results)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chiaroscuro.studies.origin.code_digest", lambda: "changed")
        with pytest.raises(ValueError, match="1 of 1 runs failed"):  # whose process finds the source as it was
            run_study(small, places, 1)
    (log,) = [log for log in places.work.glob("*/*.log") if "the source was changed" in log.read_text()]
    assert not (log.parent / name).exists()
    shutil.rmtree(places.results)
    assert run_study(small, places, 1)[name]["loss"] == first["loss"]


def test_labels_and_further_tasks_are_data_too(study, tmp_path):
    reviews = tmp_path / "reviews"
    reviews.mkdir()
    for split in ("train", "test"):
        lines = [json.dumps({"text": f"the film {n} was so so", "label": n % 2}) for n in range(40)]
        (reviews / f"{split}.jsonl").write_text("\n".join(lines))
    plans = [
        replace(study.plan, task="imdb", data=str(reviews), steps=1),
        replace(study.plan, mixed={"imdb": str(reviews)}, steps=1),
    ]
    before = [origin_of(prepare(plan)).data for plan in plans]
    assert [origin_of(prepare(plan)).data for plan in plans] == before
    for file in reviews.glob("*.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(line | {"label": 1 - line["label"]}) + "\n" for line in lines))
    assert all(origin_of(prepare(plan)).data != each for plan, each in zip(plans, before, strict=True))


def test_ctrl_c_starts_no_further_run(study, places):
    study = replace(study, plan=replace(study.plan, steps=2000, save_every=50), learning_rates=(1e-3, 2e-3, 3e-3))
    process = begun(study, places, "*/*/metrics.jsonl", count=2)
    os.killpg(process.pid, signal.SIGINT)
    process.join(120)
    assert process.exitcode == 130
    logs = [log.read_text() for log in places.work.glob("*/*.log")]
    assert len(logs) == 2
    assert all("stopped by SIGINT" in log for log in logs)


@pytest.mark.usefixtures("forked_runs")
def test_a_failed_run_is_named_and_the_others_are_kept(study, places):
    broken = replace(study, arms=(study.arms[0], Arm("broken", "chiar", {"router": "oracle"})), learning_rates=(1e-3,))
    with pytest.raises(ValueError, match="1 of 2 runs failed: broken_lr0.001_seed0; what they printed is in work"):
        run_study(broken, places, 2)
    assert [path.name for path in (places.results / "runs").iterdir()] == ["full-attention_lr0.001_seed0.json"]
    (log,) = places.work.glob("*/broken_lr0.001_seed0.log")
    assert "unknown router 'oracle'" in log.read_text()


def test_a_damaged_result_is_named(study, places):
    file = places.result(study.search()[0])
    file.parent.mkdir(parents=True)
    for content, complaint in (('{"loss": 5.', "damaged"), ('{"loss": 5.0}', r"damaged \(perplexity is missing\)")):
        file.write_text(content)
        with pytest.raises(ValueError, match=f"{file} is {complaint}.*: restore it, or remove it and make it again"):
            run_study(study, places, 1)
    (run, *_) = replace(study, plan=replace(study.plan, test_on={"novel": "novel.txt"})).search()
    file.write_text(json.dumps(dict.fromkeys(OF_EVERY_RUN, 0)))
    with pytest.raises(ValueError, match=r"is damaged \(test_on is missing\)"):
        read_result(run, places)


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_arm_of_every_study_has_a_configuration(study):
    for run in study.search():
        config = run.plan.config({})
        assert config.hidden_size == study.plan.fields["hidden_size"]
    names = [run.name for run in study.search()]
    assert len(set(names)) == len(names) == study.tuning_seeds * sum(len(study.rates_of(arm)) for arm in study.arms)


def test_the_code_digest_follows_what_numbers_come_from(monkeypatch, tmp_path):
    for place in ("ops/dct.py", "cli/root.py"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("1")
    monkeypatch.setattr("chiaroscuro.__file__", str(tmp_path / "__init__.py"))
    before = code_digest()
    (tmp_path / "cli" / "root.py").write_text("2")
    assert code_digest() == before
    (tmp_path / "ops" / "dct.py").write_text("2")
    assert code_digest() != before


def test_an_unknown_study_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown study 'vast'; known studies: smoke, controls, vocabulary, ablation"):
        studies.study_named("vast")


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
