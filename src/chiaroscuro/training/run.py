"""Train a model by a plan, measure it on held-out text, and leave a run folder."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from chiaroscuro.flops import flops_ratios
from chiaroscuro.routing import calibrate
from chiaroscuro.training.folder import (
    CHECKPOINTS,
    METRICS,
    PLAN,
    RESULTS,
    new_run_folder,
    read_json,
    versions,
    write_json,
)
from chiaroscuro.training.plan import TrainingPlan
from chiaroscuro.training.task import Task
from chiaroscuro.training.trainer import Bar, MetricsFile, RoutingTrainer, ThresholdRefresh

LOGS_PER_RUN = 50


def train(plan: TrainingPlan, task: Task, out: Path, resume: bool = False) -> dict[str, Any]:
    """Train, measure on the held-out splits, and write the run folder `out`. Returns what `results.json` holds: loss,
    perplexity, accuracy and routing are those of the test split, `validation` holds what may be chosen by.

    One seed gives the same loss curve on the same machine. With `resume` the last checkpoint in `out` is continued.
    Raises ValueError for a folder that would be overwritten, and when there is nothing to resume.
    """
    config = plan.config(task.fields())
    checkpoint = _last_checkpoint(out) if resume else None
    if resume:
        _check_same_plan(plan, read_json(out / PLAN))
    else:
        write_json(new_run_folder(out) / PLAN, asdict(plan))
    done = 0 if checkpoint is None else _steps(checkpoint)
    set_seed(plan.seed)
    model = task.build(config)
    bar = Bar(plan.recipe)
    trainer = _trainer(plan, model, task, out, bar)
    start = time.perf_counter()
    if checkpoint is None or done < plan.steps:
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            bar.progress.stop()
    else:
        # Stopped between the last checkpoint and the results; the Trainer would take a step too many.
        model = type(model).from_pretrained(checkpoint)
    seconds = time.perf_counter() - start
    calibrate(model, task.calibration_text().to(model.device))

    validation = task.measure(model, "validation", show_progress=True)
    test = task.measure(model, "test", show_progress=True)
    tokens_seen = plan.steps * plan.batch_size * plan.seq_len
    windows = task.windows["test"]
    sample = windows.batch(range(min(8, len(windows)))).to(model.device)
    results = {
        "recipe": plan.recipe,
        "task": plan.task,
        "data": plan.data,
        "seed": plan.seed,
        "steps": plan.steps,
        "tokens_seen": tokens_seen,
        "parameters": model.num_parameters(),
        "loss": test.loss,
        "perplexity": test.perplexity,
        "bits_per_byte": test.bits_per_byte,
        "accuracy": test.accuracy,
        "tasks": test.tasks,
        "validation": asdict(validation),
        "flops": flops_ratios(model, sample),
        "routing": test.routing,
        "train_seconds": seconds,
        "tokens_per_second": tokens_seen * (1 - done / plan.steps) / seconds,
        "plan": asdict(plan),
        "versions": versions(),
    }
    model.save_pretrained(out)
    task.tokenizer.model_max_length = config.max_position_embeddings
    task.tokenizer.save_pretrained(out)
    write_json(out / RESULTS, results)
    return results


def _last_checkpoint(out: Path) -> Path:
    """The newest whole checkpoint: the Trainer writes `trainer_state.json` after everything else."""
    whole = [state.parent for state in (out / CHECKPOINTS).glob("checkpoint-*/trainer_state.json")]
    if not whole:
        raise ValueError(f"nothing to resume in {out}: it holds no checkpoint (train with --save-every)")
    return max(whole, key=_steps)


def _steps(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _check_same_plan(plan: TrainingPlan, started: dict[str, Any]) -> None:
    """A run goes on by the plan it was started by; only how often it saves may differ."""
    now = json.loads(json.dumps(asdict(plan)))
    changed = [name for name in now if name != "save_every" and now[name] != started.get(name)]
    if changed:
        differences = ", ".join(f"{name} was {started.get(name)!r} and is {now[name]!r}" for name in changed)
        raise ValueError(f"the run was started by another plan: {differences}")


def _trainer(plan: TrainingPlan, model: PreTrainedModel, task: Task, out: Path, bar: Bar) -> RoutingTrainer:
    arguments = TrainingArguments(
        output_dir=str(out / CHECKPOINTS),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": plan.learning_rate / 100},
        warmup_steps=plan.warmup_steps,
        weight_decay=plan.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        seed=plan.seed,
        data_seed=plan.seed,
        logging_steps=max(1, plan.steps // LOGS_PER_RUN),
        save_strategy="no" if plan.save_every is None else "steps",
        save_steps=plan.save_every or plan.steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = task.trainer(
        model=model,
        args=arguments,
        train_dataset=task.examples["train"],
        data_collator=task.collate,
        callbacks=[
            ThresholdRefresh(task.calibration_text(), plan.calibrate_every),
            MetricsFile(out / METRICS),
            bar,
        ],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
