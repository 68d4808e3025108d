"""The Python in the documents runs."""

import json
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from chiaroscuro import ChiarConfig, cli
from chiaroscuro.flops import planned_flops
from chiaroscuro.studies import STUDIES, report
from chiaroscuro.studies.evidence import Finished, difference, finished
from chiaroscuro.studies.table import on_text

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


def words_of(page: Path) -> str:
    """Its text, wherever the lines end."""
    return " ".join(page.read_text().split())


def code_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


BLOCKS = [pytest.param(code, id=f"{page.name}-{n}") for page in PAGES for n, code in enumerate(code_of(page), 1)]


@pytest.mark.parametrize("code", BLOCKS)
def test_code_in_the_documents_runs_as_printed(code):
    namespace = {"__name__": "document"}
    exec(compile(code, "document", "exec"), namespace)
    assert len(namespace) > 2, "a block that leaves nothing behind shows nothing"


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.name)
def test_a_tutorial_runs_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    """With fewer steps than it says."""
    monkeypatch.chdir(tmp_path)
    code, count = re.subn(r"(?m)^steps = \d+$", "steps = 8", "\n".join(code_of(page)))
    assert count == 1
    exec(compile(code, str(page), "exec"), {"__name__": "tutorial"})
    assert "share 0.25: perplexity" in capsys.readouterr().out


def test_the_figures_of_the_tutorial_are_those_of_the_committed_result():
    page = (ROOT / "docs" / "tutorials" / "retrofit.md").read_text()
    rows = json.loads((ROOT / "results" / "tutorials" / "retrofit.json").read_text())["rows"]
    assert len(rows) == 3
    for row in rows:
        assert "| {share:.2f} | {perplexity:.1f} | {flops:.3f} |".format(**row) in page


@pytest.mark.parametrize("page", [*PAGES, *TUTORIALS], ids=lambda page: page.name)
def test_links_between_documents_lead_somewhere(page):
    targets = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_figures_of_the_readme_are_those_of_the_committed_result():
    readme = (ROOT / "README.md").read_text()
    comparison = json.loads((ROOT / "results" / "demo" / "comparison.json").read_text())
    chiar, full = comparison["runs"]["chiar"], comparison["runs"]["full_attention"]
    rows = {
        "perplexity": "{perplexity:.1f}",
        "bits per byte": "{bits_per_byte:.3f}",
        "attention FLOPs, to full attention": "{flops[attention_ratio]:.3f}",
        "all FLOPs, planned": "{flops[total_ratio]:.3f}",
        "all FLOPs, executed": "{flops[executed_ratio]:.3f}",
        "parameters": "{parameters:,}",
        "training seconds": "{train_seconds:.0f}",
        "tokens per second": "{tokens_per_second:,.0f}",
    }
    for label, form in rows.items():
        row = next(line for line in readme.splitlines() if line.startswith(f"│ {label} "))
        assert [cell.strip() for cell in row.split("│")[2:4]] == [form.format(**chiar), form.format(**full)]
    for words, number in comparison["by_chance"].items():
        assert f"By chance: {words}, {number:.4g}, on the same held-out text." in readme
    assert chiar["versions"]["commit"] == full["versions"]["commit"]


def test_what_the_readme_says_of_the_claims_is_what_the_studies_found():
    readme = words_of(ROOT / "README.md")
    names = ("controls", "ablation", "rates", "vocabulary")
    studies = {name: finished(STUDIES[name], ROOT / "results" / name) for name in names}
    routed, full = "DCT and attention, threshold", "full attention, v1"
    found = difference(studies["rates"], [(routed, full)], pooled=False)
    pre_norm = difference(studies["controls"], [("entropy", "full attention")]).mean
    smaller = size_of(studies["controls"], "entropy") / size_of(studies["controls"], "full attention")
    rotary, learned = (
        studies[study].table[arm]["perplexity"]["mean"]
        for study, arm in (("ablation", "full attention, v2"), ("rates", full))
    )
    assert (
        f"{100 * found.mean:.0f} % worse than its post-norm baseline ({100 * found.low:.0f} to "
        f"{100 * found.high:+.0f} %); the same routing in a pre-norm body is {100 * pre_norm:.0f} % worse than full "
        f"attention in that body, with {100 * (1 - smaller):.0f} % fewer parameters than it. Rotary in place of "
        f"learned positions takes {100 * (1 - rotary / learned):.0f} % off the baseline's"
    ) in readme
    by_chance = [("entropy", "random")]
    chance, again = (difference(studies[name], by_chance).mean for name in ("controls", "vocabulary"))
    own, own_again = (difference(studies[name], by_chance, pooled=False) for name in ("controls", "vocabulary"))
    post_norm = difference(studies["ablation"], [(routed, "DCT and attention, random")])
    assert post_norm.low < 0 < post_norm.high
    by_hash = difference(studies["vocabulary"], [("entropy", "hash of the token")]).mean
    assert (
        f"pre-norm: better than chance by {-100 * chance:.1f} and {-100 * again:.1f} % of perplexity in two studies "
        f"({-100 * own.high:.1f} to {-100 * own.low:.1f} and {-100 * own_again.high:.1f} to {-100 * own_again.low:.1f} "
        f"by the arms' own variances), {100 * by_hash:.1f} % worse than a hash of the token, of which one was tried; "
        "post-norm: not settled"
    ) in readme
    dct = [(router, f"{router}, nothing for DCT") for router in ("entropy", "learned")]
    assert f"the DCT gains {-100 * difference(studies['controls'], dct).low:.1f} % of perplexity at the most" in readme
    short, long = (100 * (1 - ratio_of_all_flops("v2_400m", length)) for length in (256, 1024))
    assert f"v2: {short:.0f} % at its published size and 256 tokens, {long:.0f} % at 1024 |" in readme


def test_what_the_readme_says_of_collapse_and_regime_is_what_the_page_says():
    readme, page = words_of(ROOT / "README.md"), words_of(ROOT / "docs" / "results.md")
    mixes, does_not = re.search(
        r"that mixes in .*?, the RBF itself in (.*?); with one that does not in .*?, the RBF itself in (.*?); with",
        page,
    ).groups()
    assert (
        f"in {mixes.replace('to', 'or')} runs, by how one counts, where it mixes tokens; in {does_not} where it does "
        "not, as in the paper's code |"
    ) in readme
    large, small, listops, sentiment = re.search(
        r"Large text (\S+) % .*?; small text (\S+) % .*?; ListOps (\S+) points .*?; sentiment (\S+) points", page
    ).groups()
    assert (
        f"{large} % of perplexity on these reviews, {small} % on WikiText, a tenth as long and seen nine times with "
        f"dropout; {listops} points on ListOps; {sentiment} on sentiment"
    ) in readme


def size_of(study: Finished, arm: str) -> int:
    return study.table[arm]["parameters"]


def ratio_of_all_flops(recipe: str, length: int) -> float:
    config = ChiarConfig.from_recipe(recipe)
    return planned_flops(config, 1, length).total / planned_flops(config.twin(), 1, length).total


def test_what_the_readme_says_of_the_recipes_is_what_the_study_found():
    readme = words_of(ROOT / "README.md")
    controls = finished(STUDIES["controls"], ROOT / "results" / "controls")
    arms = ("entropy", "full attention", "two attention layers")
    entropy, full, two = (controls.table[arm]["perplexity"]["mean"] for arm in arms)
    spent = [controls.table[arm]["executed_ratio"]["mean"] for arm in ("two attention layers", "entropy")]
    assert f"({two:.1f}, at {spent[0]:.2f} of all FLOPs against {spent[1]:.2f})" in readme
    worse = 100 * difference(controls, [arms[:2]]).mean
    more = 100 * (size_of(controls, "full attention") / size_of(controls, "entropy") - 1)
    assert (
        f"{worse:.0f} % of perplexity worse than full attention, which has {more:.0f} % more parameters "
        f"({entropy:.1f} to {full:.1f})"
    ) in readme
    pairs = [("entropy", "full attention, FLOPs of entropy")]
    pooled, own = difference(controls, pairs), difference(controls, pairs, pooled=False)
    assert (
        f"{100 * pooled.mean:.0f} % worse where both are trained with equal FLOPs ({100 * pooled.low:.1f} to "
        f"{100 * pooled.high:.1f} by the study's pooled variance, {100 * own.low:.1f} to {100 * own.high:.1f} by these "
        "two arms' own)"
    ) in readme
    ablation = finished(STUDIES["ablation"], ROOT / "results" / "ablation")
    post = ablation.table["full attention, v2"]["perplexity"]["mean"]
    assert (
        f"`v2_full_attention` has {post:.1f} (study `ablation`) and `full_attention` {full:.1f} (`controls`)" in readme
    )


def test_what_the_readme_says_of_reviews_is_what_the_study_found():
    study, texts = finished(STUDIES["reviews"], ROOT / "results" / "reviews"), (None, "wikitext")

    def told(arm: str) -> str:
        return " and ".join(f"{on_text(study.table[arm], text)['perplexity']['mean']:.1f}" for text in texts)

    recurring = "every token that recurs"
    of_articles = [run["test_on"]["wikitext"]["flops"]["attention_ratio"] for run in study.runs[recurring]]
    spent = study.table[recurring]["attention_ratio"]["mean"], statistics.mean(of_articles)
    pairs = [(recurring, "full attention")]
    found, further = (difference(study, pairs, text) for text in texts)
    own = difference(study, pairs, "wikitext", pooled=False)
    assert (
        f"`chiar` {told(recurring)}, at {spent[0]:.3f} and {spent[1]:.3f} of full attention's attention FLOPs, full "
        f"attention {told('full attention')}, which `chiar` is {-100 * found.mean:.1f} % below "
        f"({-100 * found.high:.1f} to {-100 * found.low:.1f}) and {-100 * further.mean:.1f} % "
        f"({-100 * further.high:.1f} to {-100 * further.low:.1f}; by these two arms' own variances "
        f"{-100 * own.high:.1f} to {-100 * own.low:.1f}). All tokens of that layer {told('whole layers, 25 %')}, a "
        f"random half of them {told('random, 12.5 %')}, six layers without attention {told('no attention')}."
    ) in words_of(ROOT / "README.md")


def test_what_the_readme_says_of_the_first_seed_of_budgets_is_what_its_runs_say():
    study, folder = STUDIES["budgets"], ROOT / "results" / "budgets" / "runs"

    def best(arm: str) -> dict[str, Any]:
        runs = [json.loads((folder / f"{run.name}.json").read_text()) for run in study.search() if run.arm == arm]
        assert len(runs) == 3
        return min(runs, key=lambda run: run["validation"]["loss"])

    full, ours = best("full attention"), best("every token that recurs")
    units = study.units()["every token that recurs"]
    spent = [ours["flops"][name] * unit for name, unit in zip(("attention_ratio", "total_ratio"), units, strict=True)]
    assert (
        f"of three: full attention {full['perplexity']:.2f}, `chiar` {ours['perplexity']:.2f}, at {spent[0]:.2f} of "
        f"full attention's attention FLOPs and {spent[1]:.2f} of all."
    ) in words_of(ROOT / "README.md")
    assert round(100 * (ours["perplexity"] / full["perplexity"] - 1)) == 4


def test_the_page_on_studies_names_them_all_with_their_numbers_of_runs():
    page = (ROOT / "docs" / "studies.md").read_text()
    for study in STUDIES.values():
        runs = len(study.search()) + len(study.arms) * (len(study.seeds) - study.tuning_seeds)
        assert f"| `{study.name}` | {runs} |" in page


def test_the_times_in_the_readme_are_those_of_the_committed_results():
    ratios: dict[tuple[str, str], list[float]] = {}
    by_flops: dict[tuple[str, str], float] = {}
    for target in ("run-*/op", "run-*/layer", "run-*/model", "run-*/train", "run-*/decode", "chiar-*/chiar"):
        for path in (ROOT / "results" / "bench").glob(f"{target}.json"):
            for case in json.loads(path.read_text())["cases"]:
                row = case["name"].removesuffix(f", {case['keys']} keys"), case["keys"]
                ratios.setdefault(row, []).append(case["ratio"]["full attention"][0])
                by_flops[row] = case["predicted"]["full attention"]
    readme = (ROOT / "README.md").read_text()
    assert len(ratios) == 22
    for name in {name for name, _ in ratios}:
        times = " | ".join(f"{statistics.median(ratios[name, keys]):.2f}" for keys in ("all", "routed"))
        assert f"| {name} | {times} | {by_flops[name, 'all']:.2f}, {by_flops[name, 'routed']:.2f} |" in readme


def test_the_page_of_results_is_what_the_command_writes():
    studies = [study for study in STUDIES.values() if study.name != "smoke"]
    page = ROOT / "docs" / "results.md"
    assert report(studies, ROOT / "results", page) == page.read_text()


def test_the_page_shows_the_figures_of_a_study_that_has_just_been_finished(tmp_path, monkeypatch):
    made = tmp_path / "results" / "small_text"
    shutil.copytree(ROOT / "results" / "small_text" / "runs", made / "runs")
    shutil.copy(ROOT / "results" / "small_text" / "study.json", made)
    monkeypatch.chdir(tmp_path)
    cli.app(["report", "--results", "results", "--page", "page.md"], standalone_mode=False)
    shown = re.findall(r"!\[small_text: \w+\]\((.*?)\)", (tmp_path / "page.md").read_text())
    assert shown == [f"results/small_text/figures/{name}.png" for name in ("cost", "curves", "shares")]
    assert all((tmp_path / place).is_file() for place in shown)
