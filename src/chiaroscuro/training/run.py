"""Train a model by a plan, measure it on held-out text, and leave a run folder."""

import json
import math
import pickle
import signal
import warnings
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from chiaroscuro.flops import flops_ratios
from chiaroscuro.modeling import CARD, ChiarConfig, read_json
from chiaroscuro.ops import NotFinite
from chiaroscuro.routing import Calibration, calibrate
from chiaroscuro.training.card import add_to_card, run_card
from chiaroscuro.training.checkpoints import discard_drafts, last_whole, steps_of
from chiaroscuro.training.dense_start import DenseStart, training_ratio
from chiaroscuro.training.folder import (
    CHECKPOINTS,
    DATA,
    METRICS,
    PLAN,
    RESULTS,
    Run,
    alone_in,
    changed_data,
    cut_metrics,
    new_run_folder,
    seconds_trained,
    versions,
    write_json,
)
from chiaroscuro.training.mixed import task_of
from chiaroscuro.training.plan import TrainingPlan
from chiaroscuro.training.ranks import on_first, ranks
from chiaroscuro.training.stop import StopAtSignal, ignore_sigterm
from chiaroscuro.training.task import Task
from chiaroscuro.training.trainer import Bar, MetricsFile, RoutingTrainer, ThresholdRefresh

FLOPS_TOKENS = 8192  # that ratios of FLOPs are measured on


class Stopped(ValueError):
    """A run was stopped from outside, and saved. name: of the signal. exit_code: as of a process that it ended."""

    def __init__(self, name: str, complaint: str):
        super().__init__(f"stopped by {name} {complaint}")
        self.name = name
        self.exit_code = 128 + signal.Signals[name]


def train(plan: TrainingPlan, task: Task, out: Path, resume: bool = False, sharded: bool = False) -> dict[str, Any]:
    """Train, measure on the held-out splits, and write the run folder `out`. Returns what `results.json` holds: loss,
    perplexity, accuracy and routing are those of the test split, `validation` holds what may be chosen by.

    One seed gives the same loss curve on the same machine. With `resume` the run in `out` goes on from its last
    checkpoint that is whole, and its curve becomes that of a run which was never stopped; of one that is finished the
    results are returned, unless its weights are gone and a checkpoint has them. SIGTERM and Ctrl-C let it save first;
    the next log is then a mean over the steps since it went on. Raises ValueError for a folder that would be
    overwritten, or that another process is at work in, when there is nothing to resume, and when it was stopped;
    OSError when it cannot be saved.

    Started by torchrun, several processes train one model: each takes its part of every batch, so that the curve is
    that of one process, up to the end of the first epoch: a last batch that is not full one process takes as it is, and
    several fill it up from the first. The first process measures and writes; the others return nothing. `sharded`
    spreads weights and optimiser over them as well (FSDP). Raises ValueError when a batch does not divide among them,
    and OSError when one of them died.
    """
    config = plan.config(task.fields())
    if plan.batch_size % ranks().num_processes:
        raise ValueError(f"{plan.batch_size} windows per step do not divide among {ranks().num_processes} processes")
    if sharded and not torch.cuda.is_available():
        raise ValueError("weights and optimiser are spread over GPUs only (accelerate has no FSDP on the CPU)")
    if plan.mixed and ranks().num_processes > 1:
        raise ValueError("a run with further tasks (mixed) is trained by one process")
    if resume:
        on_first(lambda: started_plan(out))  # before anything is made where there is none
    on_first(plan.warn_if_slow)
    with ExitStack() as stack:
        on_first(lambda: stack.enter_context(alone_in(out)))
        results = on_first(lambda: _finished(plan, out)) if resume else None
        if resume and results is None:
            on_first(lambda: _keep_to_data(task, out))
        if results is None:
            results = _train(plan, config, task, out, resume, sharded)
    return results if ranks().is_main_process else {}


def _train(
    plan: TrainingPlan, config: ChiarConfig, task: Task, out: Path, resume: bool, sharded: bool
) -> dict[str, Any]:
    """`train`, of what is in order, by processes that are alone in the folder."""
    checkpoint = on_first(lambda: _go_on(out) if resume else _begin(plan, task, out))
    done = 0 if checkpoint is None else steps_of(checkpoint)
    set_seed(plan.seed)
    model: Any = task.build(config)
    bar, stop = Bar(plan.recipe), StopAtSignal()
    trainer = _trainer(plan, model, task, out, [bar, stop], sharded)
    trained = checkpoint
    if checkpoint is not None and done == plan.steps:  # stopped between the last checkpoint and the results
        trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    else:
        try:
            _fit(trainer, stop, checkpoint, out)
        finally:
            bar.progress.stop()
        trained = out
        if sharded:
            trainer.save_model(str(out))  # all put their parts together
        elif ranks().is_main_process:
            model.save_pretrained(out)
    if not ranks().is_main_process:
        return {}
    # As anyone else will read it: what was trained may still multiply in bfloat16.
    return _finish(plan, type(model).from_pretrained(trained).to(trainer.args.device), task, out, trainer)


def _finish(plan: TrainingPlan, model: Any, task: Task, out: Path, trainer: RoutingTrainer) -> dict[str, Any]:
    """Calibrate and measure a trained model, and write all that makes a run folder. Returns the results."""
    try:
        calibrate(model, *task.calibration_text())
        measured = _measured(plan, model, task)
    except NotFinite as error:
        raise trainer.diverged() from error
    if not math.isfinite(measured["loss"]):
        raise trainer.diverged()
    tokens_seen = trainer.state.num_input_tokens_seen
    seconds = seconds_trained(out / METRICS)
    results = measured | {
        "tokens_seen": tokens_seen,
        "train_seconds": seconds,
        "tokens_per_second": tokens_seen / seconds if seconds else None,
    }
    model.save_pretrained(out)
    task.tokenizer.model_max_length = model.config.max_position_embeddings
    task.tokenizer.save_pretrained(out)
    run_card(model, results).save(out / CARD)
    write_json(out / RESULTS, results)
    return results


def recalibrate(run: Run, tokens: int, data: str | None = None) -> list[Calibration]:
    """Set the thresholds of a run anew, on its own validation text or on other data, and save them; its results and its
    card, whose figures are of the thresholds before, say so.

    Raises ValueError when no router keeps to a share by thresholds, when another process is at work in the folder, and
    as `task_of`.
    """
    text = task_of(run, data).calibration_text(tokens)
    with alone_in(run.folder):
        found = calibrate(run.model, *text)
        if not found:
            raise ValueError(f"nothing to calibrate: in {run.folder} no router keeps to a share by thresholds")
        run.model.save_pretrained(run.folder)
        if run.results:
            made = versions()
            calibrated = {"tokens": tokens, "data": data, "versions": made}
            write_json(run.folder / RESULTS, run.results | {"calibrated": calibrated})
            told = f"Thresholds were set anew by `{made['command']}`; figures above are of those before."
            add_to_card(run.folder / CARD, told)
    return found


def _fit(trainer: RoutingTrainer, stop: StopAtSignal, checkpoint: Path | None, out: Path) -> None:
    """Take the steps that are left. Raises Stopped after a signal, OSError when another process died, and ValueError
    for a checkpoint that is whole and yet none of this program's."""
    try:
        with stop.listening():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except pickle.UnpicklingError as error:  # its text is advice to load what is not trusted all the same
        raise ValueError(f"{checkpoint} holds more than the state of a run, and nothing of it was run") from error
    except RuntimeError as error:
        if ranks().num_processes == 1:
            raise
        ignore_sigterm()  # which torchrun sends when it sees that another process died
        raise OSError(
            f"process {ranks().process_index} of {ranks().num_processes} cannot go on ({error}): has another one "
            f"died? The last checkpoint is kept; to go on, the same command with --out {out} --resume"
        ) from error
    if trainer.state.global_step < trainer.state.max_steps:
        assert stop.name is not None
        raise Stopped(
            stop.name,
            f"after step {trainer.state.global_step} of {trainer.state.max_steps}, which is saved; to go on: "
            f"chiaroscuro train --out {out} --resume",
        )


def _measured(plan: TrainingPlan, model: Any, task: Task) -> dict[str, Any]:
    """What a trained model does on held-out data, what it costs, and by what it was made."""
    validation = task.measure(model, "validation", show_progress=True)
    test = task.measure(model, "test", show_progress=True)
    return {
        "recipe": plan.recipe,
        "task": plan.task,
        "data": plan.data,
        "seed": plan.seed,
        "steps": plan.steps,
        "parameters": model.num_parameters(),
        "loss": test.loss,
        "perplexity": test.perplexity,
        "bits_per_byte": test.bits_per_byte,
        "accuracy": test.accuracy,
        "tasks": test.tasks,
        "validation": asdict(validation),
        "test_on": {name: _on_further_text(model, task, name) for name in plan.test_on},
        "flops": _spent(model, task, "test") | _spent_in_training(plan, model, task),
        "routing": test.routing,
        "plan": asdict(plan),
        "versions": versions(),
    }


def _on_further_text(model: Any, task: Task, name: str) -> dict[str, Any]:
    """How well the model does on one of the plan's further texts, and what it spends there."""
    evaluation = task.measure(model, name, show_progress=True)
    return asdict(evaluation) | {"flops": _spent(model, task, name)}


def _spent(model: Any, task: Task, split: str) -> dict[str, float]:
    """The ratios of FLOPs on a part of a split, or of a further text."""
    return flops_ratios(model, *task.sample(split, FLOPS_TOKENS))


def _spent_in_training(plan: TrainingPlan, model: Any, task: Task) -> dict[str, float]:
    """What the ratios of the trained model do not say of its training, that more tokens attended at first."""
    if not plan.dense_steps:
        return {}
    start = DenseStart(model, plan.dense_steps)
    texts = task.sample("test", FLOPS_TOKENS), task.calibration_text()
    return {"training_ratio": training_ratio(model, start, plan.steps, *texts)}


def _begin(plan: TrainingPlan, task: Task, out: Path) -> None:
    """Make the run folder, with the plan and hashes of the data."""
    write_json(new_run_folder(out) / PLAN, asdict(plan))
    _keep_to_data(task, out)


def _finished(plan: TrainingPlan, out: Path) -> dict[str, Any] | None:
    """The results of a run that has nothing left to do, None of another."""
    _check_same_plan(plan, started_plan(out))
    if not (out / RESULTS).exists():
        return None
    lost = not any(out.glob("*.safetensors")) and last_whole(out / CHECKPOINTS)[0] is not None  # it can be mended
    return None if lost else read_json(out / RESULTS)


def _go_on(out: Path) -> Path | None:
    """The checkpoint to go on from, None for the beginning; the logs are cut back to it."""
    checkpoint, complaints = last_whole(out / CHECKPOINTS)
    for complaint in complaints:
        warnings.warn(complaint, stacklevel=3)
    if checkpoint is None:
        warnings.warn(f"there is no checkpoint in {out}: its training begins anew", stacklevel=3)
    discard_drafts(out / CHECKPOINTS)
    cut_metrics(out / METRICS, 0 if checkpoint is None else steps_of(checkpoint))
    return checkpoint


def started_plan(out: Path) -> TrainingPlan:
    """The plan of the run in `out`. Raises ValueError when there is none."""
    if not (out / PLAN).is_file():
        raise ValueError(f"nothing to resume in {out}: it holds no {PLAN}")
    return TrainingPlan.read(read_json(out / PLAN), out / PLAN)


def _check_same_plan(plan: TrainingPlan, started: TrainingPlan) -> None:
    """A run goes on by the plan it was started by."""
    now, before = (json.loads(json.dumps(asdict(each))) for each in (plan, started))
    changed = [name for name in now if now[name] != before[name]]
    if changed:
        differences = ", ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in changed)
        raise ValueError(f"the run was started by another plan: {differences}")


def _keep_to_data(task: Task, out: Path) -> None:
    """A run goes on with the data that it was begun on, whose tokens its weights know: hashes of them are written down
    where there are none."""
    digests = task.digests()
    if not (out / DATA).exists():
        write_json(out / DATA, digests)
    if changed := changed_data(digests, out):
        raise ValueError(
            f"the data of the run in {out} have changed since it was begun ({', '.join(changed)}): restore them, or "
            "begin anew with another --out"
        )


def _trainer(
    plan: TrainingPlan,
    model: PreTrainedModel,
    task: Task,
    out: Path,
    callbacks: list[TrainerCallback],
    sharded: bool,
) -> RoutingTrainer:
    arguments = TrainingArguments(
        output_dir=str(out / CHECKPOINTS),
        use_cpu=not torch.cuda.is_available(),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.batch_size // ranks().num_processes,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": plan.learning_rate / 100},
        warmup_steps=plan.warmup,
        weight_decay=plan.weight_decay,
        bf16=plan.bf16,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        seed=plan.seed,
        data_seed=plan.seed,
        logging_steps=plan.log_every,
        save_strategy="no" if plan.save_every is None else "steps",
        save_steps=plan.save_every or plan.steps,
        include_num_input_tokens_seen="all" if task.collate is None else "non_padding",
        report_to="none",
        fsdp=sharded,  # type: ignore[arg-type]
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    # Several GPUs of one process would be nn.DataParallel's, which knows nothing of traces; torchrun takes them all.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    trainer = task.trainer(
        model=model,
        args=arguments,
        train_dataset=task.examples["train"],
        data_collator=task.collate,
        callbacks=[
            ThresholdRefresh(*task.calibration_text(), dense_steps=plan.dense_steps),
            MetricsFile(out / METRICS),
            *callbacks,
        ],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
