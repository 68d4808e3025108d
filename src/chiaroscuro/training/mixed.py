"""Mixed training: language modelling, with now and then a batch of a classification task added (paper, section 2)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from chiaroscuro.data import Corpus, check_source, load_other_text, pad_batch
from chiaroscuro.evaluation import Evaluation
from chiaroscuro.modeling import ChiarConfig, ChiarForCausalLM, ChiarForMixedTasks
from chiaroscuro.training.folder import RESULTS, Run, changed_data
from chiaroscuro.training.plan import TrainingPlan
from chiaroscuro.training.task import Classification, LanguageModelling, Recall, Task
from chiaroscuro.training.trainer import RoutingTrainer

MIX_PROBABILITY = 0.25
Batch = dict[str, Tensor]


class MixedTasks(LanguageModelling):
    """Language modelling of the plan's corpus, and the tasks of `plan.mixed` in the same vocabulary, each with a head
    of its own on the full backbone."""

    def __init__(self, plan: TrainingPlan, corpus: Corpus | None = None):
        super().__init__(plan, corpus)
        self.extras = {
            name: Classification(
                replace(plan, task=name, data=source, mixed={}, test_on={}, eval_tokens=None), self.tokenizer
            )
            for name, source in plan.mixed.items()
        }

    def stored(self) -> Iterator[tuple[str, Sequence[np.ndarray]]]:
        yield from super().stored()
        for name, extra in self.extras.items():
            for split, arrays in extra.stored():
                yield f"{name}, {split}", arrays

    def fields(self) -> dict[str, Any]:
        return super().fields() | {"task_labels": {name: extra.num_labels for name, extra in self.extras.items()}}

    def build(self, config: ChiarConfig) -> ChiarForMixedTasks:
        return ChiarForMixedTasks(config)

    def trainer(self, **arguments: Any) -> RoutingTrainer:
        return MixedTrainer(self.extra_batch, **arguments)

    def measure(self, model: Any, split: str, show_progress: bool = False) -> Evaluation:
        evaluation = super().measure(model, split, show_progress)
        if split in self.plan.test_on:  # of the text only
            return evaluation
        further = {
            name: extra.measure(model.classifier(name), split, show_progress) for name, extra in self.extras.items()
        }
        accuracies = {name: found.accuracy for name, found in further.items() if found.accuracy is not None}
        return replace(evaluation, tasks=accuracies)

    def extra_batch(self, step: int) -> tuple[str, Batch] | None:
        """What is added at a step: a task and a batch of it, or nothing. The same for the same seed and step, so that a
        resumed run adds what it would have added."""
        random = np.random.default_rng((self.plan.seed, step))
        if random.random() >= MIX_PROBABILITY:
            return None
        name = sorted(self.extras)[random.integers(len(self.extras))]
        sequences = self.extras[name].sequences["train"]
        indices = random.integers(len(sequences), size=self.plan.batch_size)
        return name, pad_batch([sequences[int(index)] for index in indices])


class MixedTrainer(RoutingTrainer):
    """Adds the loss of the batch that `extra_batch` gives for the step, if any. On one device."""

    def __init__(self, extra_batch: Callable[[int], tuple[str, Batch] | None], **arguments: Any):
        super().__init__(**arguments)
        self.extra_batch = extra_batch

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        extra = self.extra_batch(self.state.global_step) if model.training else None
        further: Tensor | float = 0.0
        if extra is not None:  # before the text, whose scores are those that thresholds are to follow
            name, batch = extra
            assert isinstance(model, ChiarForMixedTasks)
            with self.accelerator.autocast():  # which the Trainer puts around the forward pass of the model itself only
                further = model.classifier(name)(**self._prepare_inputs(batch)).loss
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss + further
        return (loss, outputs) if return_outputs else loss


def prepare(plan: TrainingPlan, corpus: Corpus | None = None) -> Task:
    """Read and encode the data of a plan; a language model's is `corpus` where that is given. Raises ValueError for an
    unknown task and for data that cannot be used."""
    if plan.task == "lm":
        return (MixedTasks if plan.mixed else LanguageModelling)(plan, corpus)
    return Recall(plan) if plan.task == "recall" else Classification(plan)


def task_of(run: Run, data: str | None = None) -> Task:
    """The task a run was trained on, encoded with its own tokenizer, on its own data or on other data, of which text
    without named splits is taken whole. Raises ValueError when neither is known, when its own are no longer what they
    were, when it is not said what a classifier was trained for, and for other data of a task that is generated."""
    longest = min(TrainingPlan.seq_len, run.model.config.max_position_embeddings)
    made_by = run.results.get("plan")
    plan = {"recipe": run.model.config.recipe, "seq_len": longest} | (made_by if isinstance(made_by, dict) else {})
    if data is None and "data" not in plan:
        raise ValueError(f"{run.folder / RESULTS} does not say what the run was trained on: give --data")
    if "task" not in plan and not isinstance(run.model, ChiarForCausalLM):
        raise ValueError(f"{run.folder / RESULTS} does not say what task the run was trained on")
    task = str(plan.get("task", "lm"))
    check_source(task, data)
    plan |= {"tokenizer": str(run.folder), "test_on": {}}
    if data is not None:
        on_other = TrainingPlan.read(plan | {"data": data, "eval_tokens": None}, run.folder / RESULTS)
        return prepare(on_other, load_other_text(data) if task == "lm" else None)
    own = prepare(TrainingPlan.read(plan, run.folder / RESULTS))
    if changed := changed_data(own.digests(), run.folder):
        raise ValueError(
            f"{own.plan.data} is no longer what the run in {run.folder} was trained on ({', '.join(changed)} differ): "
            "restore it, or give it as another text (--data)"
        )
    return own
