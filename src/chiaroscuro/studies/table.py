"""The table of a study: each arm at its best learning rate, mean and standard deviation over the seeds."""

import statistics
from typing import Any

from chiaroscuro.studies.study import Study

Row = dict[str, Any]
TEXT_MEASURES = ("loss", "perplexity")
FLOPS = ("attention_ratio", "total_ratio", "executed_ratio", "training_flops")
AT_A_STANDSTILL = 2.0  # times the perplexity of the best seed: a run that no longer learned


def best_runs(study: Study, results: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Per arm the results at its best learning rate, one for each seed with which it did not diverge."""
    best = study.best_rates(results)
    runs = [run for run in study.search() if run.learning_rate == best[run.arm]] + study.repetitions(best)
    found = {arm.name: [results[run.name] for run in runs if run.arm == arm.name] for arm in study.arms}
    return {arm: [result for result in own if "diverged" not in result] for arm, own in found.items()}


def rows(study: Study, results: dict[str, dict[str, Any]]) -> list[Row]:
    """Per arm: the best learning rate, the measures of the test split and of further texts, the FLOPs ratios, and the
    FLOPs executed in training to those of full attention over the plan's steps, each as mean and deviation. Of an arm
    that diverged with some seeds these are of the others, and `diverged` says how many; `stalled`, how many came to a
    standstill.

    Times are left out: they depend on what else the machine was doing.
    """
    best, units = study.best_rates(results), study.units()
    table = []
    for arm, own in best_runs(study, results).items():
        row: Row = {"arm": arm, "learning_rate": best[arm], "seeds": len(own)}
        if len(own) < len(study.seeds):
            row["diverged"] = len(study.seeds) - len(own)
        for measure in ("loss", "perplexity", "bits_per_byte", "accuracy"):
            if own[0][measure] is not None:
                row[measure] = _spread([result[measure] for result in own])
        if "perplexity" in row and any(stalled := at_a_standstill(own)):
            row["stalled"] = sum(stalled)
        of_attention, of_all = units[arm]
        row["texts"] = {text: _on(text, own, of_attention) for text in own[0].get("test_on", {})}
        row["attention_ratio"] = _spread([of_attention * result["flops"]["attention_ratio"] for result in own])
        for ratio in ("total_ratio", "executed_ratio"):
            row[ratio] = _spread([of_all * result["flops"][ratio] for result in own])
        trained = [of_all * _training_ratio(result["flops"]) * result["steps"] / study.plan.steps for result in own]
        row["training_flops"] = _spread(trained)
        row["parameters"] = own[0]["parameters"]
        table.append(row)
    return table


def at_a_standstill(results: list[dict[str, Any]]) -> list[bool]:
    """Which of the runs of an arm no longer learned at some point, as far as the others show."""
    best = min(result["perplexity"] for result in results)
    return [result["perplexity"] > AT_A_STANDSTILL * best for result in results]


def _on(text: str, results: list[dict[str, Any]], unit: float) -> Row:
    """The measures on a further text, and what is spent there, told in parts of `unit` of each result's own."""
    found = [result["test_on"][text] for result in results]
    measures: Row = {measure: _spread([each[measure] for each in found]) for measure in TEXT_MEASURES}
    return measures | {"attention_ratio": _spread([unit * each["flops"]["attention_ratio"] for each in found])}


def _training_ratio(flops: dict[str, float]) -> float:
    """Results of before routers explored do not have it apart."""
    return flops.get("training_ratio", flops["executed_ratio"])


def markdown(study: Study, table: list[Row]) -> str:
    """The table as a page, with what is needed to read it."""
    measures = [name for name in ("perplexity", "bits_per_byte", "accuracy") if name in table[0]]
    texts = list(table[0]["texts"])
    head = ["arm", "learning rate", *(name.replace("_", " ") for name in measures)]
    head += [f"perplexity on {text}" for text in texts]
    head += ["attention FLOPs", "all FLOPs planned", "all FLOPs executed", "training FLOPs", "parameters"]
    rates = ", ".join(f"{rate:g}" for rate in sorted({run.learning_rate for run in study.search()}))
    lines = [
        f"# {study.name}",
        "",
        study.question,
        "",
        f"Test split; mean ± standard deviation over seeds {', '.join(map(str, study.seeds))}. The learning rate of "
        f"each arm is chosen on the validation split among {rates}; one at an end of them may not be the best there "
        f"is. FLOPs: to {study.counted_against or 'the same-size full attention'}; those of training: to its whole "
        "training.",
        "",
    ]
    body = []
    for row in table:
        cells = [
            row["arm"] + failures(row),
            f"{row['learning_rate']:g}",
            *(_shown(row[name], 3) for name in measures),
        ]
        cells += [_shown(row["texts"][text]["perplexity"], 3) for text in texts]
        cells += [_shown(row[name], 3) for name in FLOPS]
        body.append([*cells, f"{row['parameters']:,}"])
    return "\n".join([*lines, page_table([head, *body])])


def failures(row: Row) -> str:
    """How many runs of an arm diverged or came to a standstill, to be put behind its name or what it reached."""
    failed = [f"{row[kind]} {kind}" for kind in ("diverged", "stalled") if kind in row]
    return f" ({', '.join(failed)})" if failed else ""


def page_table(rows: list[list[str]]) -> str:
    """Rows of cells, the first of them the head, as a table of a page."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:], ""])


def measure_of(row: Row) -> str:
    """What arms are compared by: accuracy, or the perplexity of language models."""
    return "accuracy" if "accuracy" in row else "perplexity"


def on_text(row: Row, text: str | None) -> Row:
    """The measures of a row on a further text; None: on the test split."""
    found: Row = row if text is None else row["texts"][text]
    return found


def with_error(figure: dict[str, float | None], digits: int) -> str:
    """A figure and its error, or a dash where there is none."""
    return "–" if figure["value"] is None else f"{figure['value']:+.{digits}f} ± {figure['error']:.{digits}f}"


def _spread(values: list[float]) -> dict[str, Any]:
    """`values` in the order of the seeds, their mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "deviation": deviation, "values": values}


def _shown(spread: dict[str, Any], digits: int) -> str:
    return f"{spread['mean']:.{digits}f} ± {spread['deviation']:.{digits}f}"
