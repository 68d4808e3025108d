"""The bench: every case agrees with its dense form, times are taken in turn, and wrong results are not timed."""

import itertools
import json
import shutil
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from chiaroscuro import bench, cli
from chiaroscuro.bench.case import FULL, OURS, half
from chiaroscuro.bench.measure import measure, peak_bytes

SIZES = bench.Sizes(batch=2, length=40, width=32, heads=2, layers=5)


NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.mark.parametrize(
    "target", [pytest.param(target, marks=[NEEDS_COMPILER] * (target == "compile")) for target in bench.TARGETS]
)
def test_every_case_computes_what_its_dense_form_does(target):
    alone = replace(SIZES, batch=1)  # of a batch that is decoded, rows with nothing to ask are computed with the others
    sizes = {
        "decode": alone,
        "chiar": alone,
        "compile": replace(SIZES, layers=3),  # one of them routed: each takes the compiler seconds
    }
    cases = list(bench.cases(target, sizes.get(target, SIZES)))
    keys = {"spectral": ["all"], "chiar": ["all"] * 3 + ["routed"] * 3}
    assert [case.keys for case in cases] == keys.get(target, ["all", "routed"])
    for case in cases:
        case.check()
        measured = bench.measure(case, rounds=2)
        ours, *others = measured.seconds
        assert ours == OURS
        assert measured.flops[OURS] < measured.flops[others[-1]]
        assert all(low <= middle <= high for middle, low, high in measured.ratio.values())
        assert measured.executed_to_planned == pytest.approx(dict.fromkeys(measured.planned, 1.0), abs=0.02)
        assert {OURS, others[-1]} <= set(measured.planned) | ({others[-1]} if target == "compile" else set())
        assert measured.met, "no bounds for sizes of one's own"


@pytest.mark.parametrize("target", ["model", "train", "decode"])
def test_a_model_of_so_few_layers_that_none_routes_is_timed_too(target):
    for case in bench.cases(target, replace(SIZES, layers=2)):
        assert bench.measure(case, rounds=2).seconds


def test_half_of_every_row_is_chosen():
    assert half(5, 40).sum(1).tolist() == [20] * 5
    assert len({tuple(row.tolist()) for row in half(5, 40)}) == 5


def test_times_of_wrong_results_are_not_taken():
    (case, _) = bench.cases("layer", SIZES)
    timed = []

    def wrong() -> None:
        raise AssertionError("not close")

    sides = {OURS: lambda: timed.append(1)}
    with pytest.raises(ValueError, match="its sides do not agree: layer, .*: not close"):
        measure(replace(case, check=wrong, sides=sides), 2)
    assert timed == []


def test_sides_are_run_in_changing_turns_and_ratios_are_of_the_same_round():
    order = []
    case = bench.Case(
        "sleep",
        "all",
        {OURS: lambda: (order.append("a"), time.sleep(0.02)), FULL: lambda: (order.append("b"), time.sleep(0.04))},
        lambda: None,
        {FULL: 0.1},
    )
    measured = measure(case, rounds=5)
    rounds = ["".join(order[start : start + 2]) for start in range(0, 14, 2)]  # two of them to warm up
    assert set(rounds) == {"ab", "ba"}
    assert 0.3 < measured.ratio[FULL][0] < 0.8
    assert not measured.met
    assert measured.rounds == 5


def test_what_is_soon_over_is_timed_more_often():
    case = bench.Case("sleep", "all", {OURS: lambda: time.sleep(0.001), FULL: lambda: time.sleep(0.001)}, lambda: None)
    assert measure(case, rounds=2, seconds=0.05).rounds > 2


def test_what_scatters_is_timed_until_its_median_is_known(monkeypatch):
    now = 0.0
    lengths = {OURS: itertools.cycle([1.9, 2.0, 2.1]), FULL: itertools.repeat(1.0)}

    def pass_time(side: str) -> None:
        nonlocal now
        now += next(lengths[side])

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    case = bench.Case("clock", "all", {side: partial(pass_time, side) for side in (OURS, FULL)}, lambda: None)
    # Quartiles 1.9 and 2.1: the standard error of the median, 2, is 0.186 over the root of the number of rounds.
    assert measure(case, rounds=3, seconds=100.0).rounds == pytest.approx((0.186 / 0.02) ** 2, rel=0.02)
    lengths[OURS] = itertools.cycle([1.0, 2.0, 3.0])
    assert measure(case, rounds=3, seconds=10.0).rounds == 30  # nine times ten seconds, three a round
    lengths[OURS] = itertools.repeat(2.0)
    assert measure(case, rounds=3, seconds=30.0).rounds == 12  # ten, and on to a multiple of three


def test_the_peak_is_of_what_is_held_at_a_time():
    def in_turn() -> None:
        for _ in range(5):
            torch.ones(100_000)

    def at_once() -> list[torch.Tensor]:
        return [torch.ones(100_000) for _ in range(5)]

    assert peak_bytes(in_turn) == pytest.approx(400_000, rel=0.1)
    assert peak_bytes(at_once) == pytest.approx(2_000_000, rel=0.1)


def test_the_command_reports_and_draws(monkeypatch, capsys, tmp_path):
    arguments = [
        "bench",
        "op",
        "--rounds",
        "2",
        "--seconds",
        "0",
        "--length",
        "20",
        "--length",
        "40",
        "--hidden-size",
        "32",
        "--heads",
        "2",
    ]
    arguments += ["--plot", str(tmp_path / "op.png"), "--out", str(tmp_path / "op.json"), "--json"]
    monkeypatch.setattr(sys, "argv", ["chiaroscuro", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "op.json").read_text())
    assert len(report["cases"]) == 4
    assert {"seconds", "ratio", "flops", "predicted", "reached", "executed_to_planned", "peak_bytes", "met"} <= set(
        report["cases"][0]
    )
    assert (tmp_path / "op.png").read_bytes().startswith(b"\x89PNG")


def test_sizes_of_a_targets_own_are_timed_on_the_given_device(monkeypatch):
    timed = []
    for part in ("op", "spectral", "layer", "body", "training_step", "decoding", "compiled"):
        monkeypatch.setattr(sys.modules["chiaroscuro.bench.cases"], part, lambda sizes, *_: timed.append(sizes))
    for target in bench.TARGETS:
        before = len(timed)
        assert list(bench.cases(target, device="cuda", dtype=torch.bfloat16)) == [None] * (len(timed) - before)
        assert len(timed) > before
    assert {(sizes.device, sizes.dtype) for sizes in timed} == {("cuda", torch.bfloat16)}


def test_where_torch_cannot_compile_it_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(tmp_path / "absent")))
    torch._dynamo.reset()
    for case in bench.cases("compile", SIZES):
        with pytest.raises(ValueError, match=r"^torch cannot compile on this machine: InvalidCxxCompiler: .*$"):
            measure(case, rounds=2)


def test_an_unknown_target_is_answered_with_the_known_ones():
    with pytest.raises(
        ValueError, match="unknown target 'speed'; known targets: op, spectral, layer, model, train, decode"
    ):
        next(bench.cases("speed"))
