"""The study of budgets: its arms spend what they say, and its figure shows what they reach."""

import pytest

from chiaroscuro import ChiarForCausalLM
from chiaroscuro.studies.budgets import BUDGETS, ROUTERS
from chiaroscuro.studies.figures import _budgets

SAID = {arm.name: float(arm.name.split(", ")[1].removesuffix(" %")) / 100 for arm in BUDGETS.arms if "%" in arm.name}
SPENT = {"full attention": 1.0, "every other layer": 0.5, "no attention": 0.0} | SAID


@pytest.mark.parametrize("run", BUDGETS.search()[:: len(BUDGETS.learning_rates)], ids=lambda run: run.name)
def test_an_arm_spends_the_attention_that_its_name_says(run):
    model = ChiarForCausalLM(run.plan.config({"vocab_size": 50, "hidden_size": 32}))
    full = ChiarForCausalLM(model.config.twin())
    assert model.flops(8, 256).attention / full.flops(8, 256).attention == pytest.approx(SPENT[run.arm], abs=1e-6)


def test_each_router_has_a_curve_from_no_attention_to_all_of_it():
    def spread(value: float) -> dict[str, float]:
        return {"mean": value, "deviation": 0.5}

    table = [
        {
            "arm": arm.name,
            "attention_ratio": spread(SPENT[arm.name]),
            "perplexity": spread(60 - 10 * SPENT[arm.name]),
            "texts": {"wikitext": {"perplexity": spread(260 - 10 * SPENT[arm.name])}},
        }
        for arm in BUDGETS.arms
    ]
    own, further = _budgets(BUDGETS, table).axes
    for axes, least in ((own, 50), (further, 250)):
        curves = {container.get_label(): container.lines[0] for container in axes.containers}
        assert set(curves) == {*ROUTERS, "whole layers"}
        for name in ROUTERS:
            x, y = curves[name].get_data()
            assert list(x) == [0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0]
            assert list(y) == pytest.approx([least + 10 * (1 - spent) for spent in x])
