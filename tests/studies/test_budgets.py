"""The studies of budgets: their arms spend what they say, and their figures show what they reach."""

import re
from dataclasses import replace

import pytest
import torch

from chiaroscuro import ChiarConfig, ChiarForCausalLM
from chiaroscuro.flops import planned_flops
from chiaroscuro.studies import STUDIES
from chiaroscuro.studies.budgets import (
    ALTERNATIVES,
    BUDGETS,
    DEEP_TWIN,
    DEEPER,
    DENSE_START,
    HALF,
    ONE_LAYER,
    QUARTER,
    RECALL,
    RECURRING,
    REVIEWS,
    ROUTERS,
    TWIN,
    UNLEARNED,
    UPPER,
)
from chiaroscuro.studies.figures import COLOURS, LINES, _budgets

OURS = (HALF, BUDGETS, ALTERNATIVES, REVIEWS, DEEPER, RECALL)
RUNS = [run for study in OURS for run in {run.arm: run for run in study.search()}.values()]


def spent(arm: str) -> float:
    """The part of full attention's FLOPs for attention, by the name of an arm; of tokens that recur half are
    expected."""
    if said := re.search(r"([0-9.]+) %$", arm):
        return float(said[1]) / 100
    if arm == DEEP_TWIN:
        return 1.25
    return {TWIN: 1.0, RECURRING: 0.125, "no attention": 0.0}[arm.split(", ")[-1]]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.plan.task}-{run.plan.seq_len}-{run.name}")
def test_an_arm_spends_the_attention_that_its_name_says(run):
    model = ChiarForCausalLM(run.plan.config({"vocab_size": 50, "hidden_size": 32}))
    twin = next(each for each in RUNS if each.arm == TWIN and each.plan.seq_len == run.plan.seq_len)
    full = ChiarForCausalLM(twin.plan.config({"vocab_size": 50, "hidden_size": 32}))
    # So long that the diagonal, where a token sees itself, does not count; windows are for the length of the study.
    length = run.plan.seq_len if "window" in run.arm else 2**20
    ratio = model.flops(8, length).attention / full.flops(8, length).attention
    assert ratio == pytest.approx(spent(run.arm), abs=1e-3 if "window" in run.arm else 1e-6)


@pytest.mark.parametrize(
    ("study", "measure", "routers"), [(BUDGETS, "perplexity", UNLEARNED), (RECALL, "accuracy", ROUTERS)]
)
def test_each_router_has_a_curve_from_no_attention_to_all_of_it(study, measure, routers):
    def spread(value: float) -> dict[str, float]:
        return {"mean": value, "deviation": 0.5}

    table = [
        {
            "arm": arm.name,
            "attention_ratio": spread(spent(arm.name)),
            measure: spread(60 - 10 * spent(arm.name)),
            "texts": {
                text: {"attention_ratio": spread(spent(arm.name)), measure: spread(260 - 10 * spent(arm.name))}
                for text in study.plan.test_on
            },
        }
        for arm in study.arms
    ]
    panels = _budgets(study, table).axes
    assert len(panels) == 1 + len(study.plan.test_on)
    for axes, least in zip(panels, (50, 250), strict=False):
        assert axes.get_ylabel() == measure
        curves = {container.get_label(): container.lines[0].get_data() for container in axes.containers}
        assert set(curves) == {*routers, "whole layers"}
        for name, (x, y) in curves.items():
            budgets = {spent(arm.name) for arm in study.arms if name in arm.curves}
            assert list(x) == sorted(budgets)
            assert {0.0, 0.5, 1.0} < budgets
            assert list(y) == pytest.approx([least + 10 * (1 - each) for each in x])


@pytest.mark.parametrize("study", OURS, ids=lambda study: study.name)
def test_flops_are_told_in_parts_of_the_studys_full_attention_whatever_an_arm_is_measured_against(study):
    configs = {run.arm: run.plan.config({"vocab_size": study.plan.vocab_size}) for run in study.search()}
    flops = {arm: planned_flops(config, 1, study.plan.seq_len) for arm, config in configs.items()}
    twins = {arm: planned_flops(config.twin(), 1, study.plan.seq_len) for arm, config in configs.items()}
    units = study.units()
    for arm, own in flops.items():
        of_attention, of_all = units[arm]
        measured = own.attention / twins[arm].attention, own.total / twins[arm].total
        assert of_attention * measured[0] == pytest.approx(own.attention / flops[TWIN].attention)
        assert of_all * measured[1] == pytest.approx(own.total / flops[TWIN].total)
        near = 0.04 if study is RECALL else 0.003  # of 32 tokens, where the diagonal counts
        assert own.attention / flops[TWIN].attention == pytest.approx(spent(arm), abs=near), arm
    assert units[TWIN] == units.get(QUARTER, (1.0, 1.0)) == (1.0, 1.0)
    assert units.get(DEEP_TWIN, (1.25, 1.0))[0] == 1.25


@pytest.mark.parametrize("study", OURS, ids=lambda study: study.name)
def test_arms_have_as_many_parameters_as_full_attention(study):
    with torch.device("meta"):
        counts = {
            run.arm: ChiarForCausalLM(run.plan.config({"vocab_size": 2048})).num_parameters() for run in study.search()
        }
    full = counts.pop(TWIN)
    for arm, count in counts.items():
        nearly = 1e-3 if arm in (UPPER, QUARTER) else 2e-3  # a convolution, other networks in whole numbers
        assert count / full == pytest.approx(1.0, abs=nearly), arm


@pytest.mark.parametrize("study", [BUDGETS, ALTERNATIVES, REVIEWS, DEEPER, RECALL], ids=lambda study: study.name)
def test_the_arms_that_are_judged_are_the_recipes_but_for_the_width_that_makes_them_as_large(study):
    plans = {run.arm: run.plan for run in study.search()}
    for arm, recipe in ((RECURRING, "chiar"), (TWIN, "full_attention")):
        judged = plans[arm].config({})
        said = {"num_hidden_layers": judged.num_hidden_layers, "intermediate_size": judged.intermediate_size}
        ours = ChiarConfig.from_recipe(recipe, **study.plan.fields | said)
        routing = {"recipe": plans[arm].recipe} | ({"router": judged.router} if arm == TWIN else {})
        assert ours.to_dict() | routing == judged.to_dict()


def test_a_dense_start_is_all_that_its_arm_differs_in():
    plans = {run.arm: run.plan for run in RECALL.search()}
    (dense,) = (arm for arm in plans if arm.startswith(DENSE_START))
    without = plans[dense.removeprefix(DENSE_START)]
    assert plans[dense] == replace(without, dense_steps=0.4 * without.steps)


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_no_two_curves_look_alike(study):
    assert len(study.arms) <= COLOURS * len(LINES)


def test_the_budgets_of_text_are_those_asked_for():
    for router in UNLEARNED:
        budgets = {spent(arm.name) for arm in BUDGETS.arms if router in arm.curves}
        assert budgets == {0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0}


def test_what_half_finds_budgets_tries_again_on_source_code_and_reviews_on_reviews():
    arms = {arm.name: arm for arm in HALF.arms}
    shared = [arm for arm in BUDGETS.arms if arm.name in (TWIN, UPPER)]
    assert len(shared) == 2
    assert all((arm.recipe, arm.fields) == (arms[arm.name].recipe, arms[arm.name].fields) for arm in shared)
    assert replace(REVIEWS.plan, test_on=HALF.plan.test_on) == HALF.plan
    assert replace(BUDGETS.plan, data=REVIEWS.plan.data, test_on=REVIEWS.plan.test_on) == REVIEWS.plan
    assert {ONE_LAYER, RECURRING, TWIN} < {arm.name for arm in REVIEWS.arms} < {arm.name for arm in BUDGETS.arms}
