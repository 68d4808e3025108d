"""transformers' Trainer, with the routing of each layer in its logs, thresholds that follow the embeddings, and a bar.

Shapes: B batch, T tokens, O operators.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, pad_across_processes
from rich.progress import TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from chiaroscuro.ops import NotFinite
from chiaroscuro.progress import bar
from chiaroscuro.routing import calibrate, follow, threshold_routers, utilisation, utilisation_entropy
from chiaroscuro.training.checkpoints import DRAFTS, discard_drafts, last_whole, settle
from chiaroscuro.training.dense_start import DenseStart
from chiaroscuro.training.folder import seconds_trained
from chiaroscuro.training.ranks import ranks

# How names begin of what the Trainer logs of the steps since a run was last resumed, and of FLOPs as a dense model has.
LEFT_OUT = ("train_", "total_flos")


class Diverged(ValueError):
    """Training left the finite numbers."""


class NotSaved(OSError):
    """A checkpoint could not be written; those before it are as they were."""


class RoutingTrainer(Trainer):
    """Adds to every log, per layer with a choice, the mean share of each operator and the utilisation entropy since
    the last one, in nats; in training, tokens that a router explores among them. Raises Diverged when the loss, or what
    an operator or a router is given, is no longer finite."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._shares: dict[str, tuple[tuple[str, ...], list[Tensor]]] = {}

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        try:
            return super().train(*args, **kwargs)
        except NotFinite as error:
            raise self.diverged() from error

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        inputs = {**inputs, "output_routing": True, "use_cache": False}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if not torch.isfinite(loss):
            raise self.diverged()
        for trace in outputs.routing if model.training else ():
            _, shares = self._shares.setdefault(str(trace.layer), (trace.operators, []))
            shares.append(utilisation(trace.gates.detach().float()))
        return (loss, outputs) if return_outputs else loss

    def diverged(self) -> Diverged:
        """What to raise when numbers at this step are no longer finite."""
        step = min(self.state.global_step + 1, self.state.max_steps)
        return Diverged(
            f"training diverged at step {step} with a learning rate of up to "
            f"{self.args.learning_rate:g}: use a smaller one"
        )

    def _get_output_dir(self, trial: Any) -> str:
        """Where `_save_checkpoint` writes to: not yet the place where a checkpoint is looked for."""
        return str(self._checkpoints / DRAFTS)

    @property
    def _checkpoints(self) -> Path:
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._saving():
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # which fails where another process died
        if self.args.should_save:
            with self._saving():
                settle(self._checkpoints, self.state.global_step)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """Raises NotSaved for what cannot be written, and leaves nothing of it."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk comes as any of these
            discard_drafts(self._checkpoints)
            whole, _ = last_whole(self._checkpoints)
            left = "there is none before it" if whole is None else f"the last one is {whole}"
            raise NotSaved(f"checkpoint of step {self.state.global_step} not saved ({error}): {left}") from error

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        for layer, (operators, shares) in self._shares.items():
            mean = self.accelerator.reduce(torch.stack(shares).mean(0), "mean")
            logs.setdefault("routing", {})[layer] = dict(zip(operators, mean.tolist(), strict=True))
            logs.setdefault("utilisation_entropy", {})[layer] = float(utilisation_entropy(mean))
        self._shares.clear()
        super().log(logs, start_time)


class ThresholdRefresh(TrainerCallback):
    """Calibrates on held-out text before the first step and when training ends; in between thresholds follow the scores
    of each step (`chiaroscuro.routing.follow`).

    Embeddings move, and with them the entropies; thresholds left alone would soon send all tokens one way. They change
    between steps only and stay as they are in evaluation. Before the first step the mixers start from data as well,
    which a model that was trained before does without (`fit_mixers=False`).

    dense_steps: over so many steps the share of tokens that attend is lowered evenly from all of them to each router's
        own, and thresholds with it (`chiaroscuro.training.DenseStart`); a checkpoint of these steps has the thresholds
        of then, and is to be calibrated where it is loaded for anything but going on. Raises ValueError, when training
        begins, for a model without a share to lower.
    """

    def __init__(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None = None,
        fit_mixers: bool = True,
        dense_steps: int = 0,
    ):
        self.held_out = input_ids_BT, attention_mask_BT
        self.fit_mixers = fit_mixers
        self.dense_steps = dense_steps
        self.dense_start: DenseStart | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.dense_steps:
            self.dense_start = DenseStart(kwargs["model"], self.dense_steps)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.dense_start is not None:  # a run that goes on finds its thresholds saved, not the shares
            self.dense_start.set(self.dense_start.remaining(state.global_step))
        if state.global_step == 0:
            calibrate(kwargs["model"], *self.held_out, fit_mixers=self.fit_mixers)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.dense_start is not None:
            self.dense_start.set(self.dense_start.remaining(state.global_step))
        follow(kwargs["model"], of_all_processes)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.dense_start is not None:
            self.dense_start.set(0.0)
        calibrate(kwargs["model"], *self.held_out)


def of_all_processes(score_N: Tensor) -> Tensor:
    """The scores that all processes have, which need not be as many each."""
    if ranks().num_processes == 1:
        return score_N
    counts = gather(torch.tensor([len(score_N)], device=score_N.device)).tolist()
    padded = gather(pad_across_processes(score_N)).view(len(counts), -1)
    return torch.cat([row[:count] for row, count in zip(padded, counts, strict=True)])


class MetricsFile(TrainerCallback):
    """Appends every log to a file, one JSON object per line, with the thresholds in force and the seconds that were
    trained for until then, those of a run that this one goes on from among them."""

    def __init__(self, path: Path):
        self.path = path
        self.start = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.start = time.perf_counter() - (seconds_trained(self.path) or 0.0)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        thresholds = {str(router.layer): router.thresholds.tolist() for router in threshold_routers(kwargs["model"])}
        line: dict[str, Any] = {"step": state.global_step, "seconds": time.perf_counter() - self.start}
        line |= {name: value for name, value in (logs or {}).items() if not name.startswith(LEFT_OUT)}
        line |= {"thresholds": thresholds} if thresholds else {}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class Bar(TrainerCallback):
    """A progress bar with the last logged loss."""

    def __init__(self, label: str):
        self.progress = bar(
            TextColumn("{task.completed}/{task.total} steps"),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            show=ranks().is_main_process,
        )
        self.task = self.progress.add_task(label, total=None, loss="")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.progress.update(self.task, total=state.max_steps, completed=state.global_step)
        self.progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.progress.update(self.task, loss=f"loss {float(logs['loss']):.3f}")
