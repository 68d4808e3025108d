"""What a study is: arms trained alike, each at its own best learning rate, over several seeds."""

import re
import statistics
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from chiaroscuro.data import check_source
from chiaroscuro.flops import planned_flops
from chiaroscuro.training import TrainingPlan


@dataclass(frozen=True)
class Arm:
    """One row of the table: a recipe, the fields in which it differs from it, and what it changes of the plan. curves:
    those of the figure of budgets that it is a point of. learning_rates: those it is tried at, where they are not the
    study's."""

    name: str
    recipe: str
    fields: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    curves: tuple[str, ...] = ()
    learning_rates: tuple[float, ...] = ()


@dataclass(frozen=True)
class StudyRun:
    """One training run of a study."""

    arm: str
    learning_rate: float
    seed: int
    plan: TrainingPlan

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{re.sub('[^a-z0-9]+', '-', self.arm.lower())}_lr{self.learning_rate:g}_seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """A question, the arms that answer it, and the plan that all arms share.

    First every arm is trained with the first `tuning_seeds` of the seeds at every learning rate, and its best rate is
    chosen by the validation split: the lowest mean loss, or where the study says so the highest accuracy, and of equal
    ones the one with the lower loss. Then it is trained at that rate with the other seeds. The test split is looked at
    only for the table.

    counted_against: the arm that FLOPs are told in parts of. Without one it is for each arm full attention as large and
    as wide as itself.
    """

    name: str
    question: str
    plan: TrainingPlan
    arms: tuple[Arm, ...]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    tuning_seeds: int = 1
    chosen_by: Literal["loss", "accuracy"] = "loss"
    counted_against: str | None = None

    def on(self, data: str | None = None, texts: dict[str, str] | None = None) -> "Study":
        """The same study with its data taken from `data`, also where an arm takes it for a further task, and those of
        the texts that it tests on from `texts`. Raises ValueError for a text that it does not test on, and for
        data where its task is generated."""
        unknown = sorted(set(texts or {}) - set(self.plan.test_on))
        if unknown:
            raise ValueError(f"study {self.name!r} does not test on {unknown[0]!r}")
        check_source(self.plan.task, data)
        data = self.plan.data if data is None else data

        def moved(plan: dict[str, Any]) -> dict[str, Any]:
            mixed = plan.get("mixed", {}).items()
            return plan | {"mixed": {task: data if source == self.plan.data else source for task, source in mixed}}

        arms = tuple(replace(arm, plan=moved(arm.plan)) for arm in self.arms)
        return replace(self, plan=replace(self.plan, data=data, test_on=self.plan.test_on | (texts or {})), arms=arms)

    def with_all_data(self) -> TrainingPlan:
        """The plan, with the further tasks of all arms."""
        tasks = [arm.plan.get("mixed", {}) for arm in self.arms]
        return replace(self.plan, mixed={name: source for each in tasks for name, source in each.items()})

    def search(self) -> list[StudyRun]:
        """The runs that choose the learning rates."""
        return [run for arm in self.arms for rate in self.rates_of(arm) for run in self._tuning(arm, rate)]

    def repetitions(self, best: dict[str, float]) -> list[StudyRun]:
        """The runs of the other seeds, given the best learning rate of each arm that has one."""
        arms = [arm for arm in self.arms if arm.name in best]
        return [self._run(arm, best[arm.name], seed) for arm in arms for seed in self.seeds[self.tuning_seeds :]]

    def best_rates(self, results: dict[str, dict[str, Any]]) -> dict[str, float]:
        """Per arm the best learning rate, of the results by name of run. One at which a run diverged is never the best,
        and an arm has none if that befell all."""
        best = {}
        for arm in self.arms:
            tried = {rate: [results[run.name] for run in self._tuning(arm, rate)] for rate in self.rates_of(arm)}
            sound = {rate: own for rate, own in tried.items() if not any("diverged" in result for result in own)}
            if sound:
                best[arm.name] = max(sound, key=lambda rate: self._goodness(sound[rate]))
        return best

    def _goodness(self, results: list[dict[str, Any]]) -> tuple[float, ...]:
        measured = [result["validation"] for result in results]
        loss = statistics.mean(each["loss"] for each in measured)
        return (-loss,) if self.chosen_by == "loss" else (statistics.mean(each["accuracy"] for each in measured), -loss)

    def units(self) -> dict[str, tuple[float, float]]:
        """What each arm's own full attention takes of attention and in all, to that of the arm counted against."""
        if self.counted_against is None:
            return {arm.name: (1.0, 1.0) for arm in self.arms}
        configs = {run.arm: run.plan.config({"vocab_size": self.plan.vocab_size}) for run in self.search()}
        length = self.plan.seq_len
        whole = planned_flops(configs[self.counted_against], 1, length)
        own = {arm: planned_flops(config.twin(), 1, length) for arm, config in configs.items()}
        return {arm: (each.attention / whole.attention, each.total / whole.total) for arm, each in own.items()}

    def rates_of(self, arm: Arm) -> tuple[float, ...]:
        return arm.learning_rates or self.learning_rates

    def _tuning(self, arm: Arm, rate: float) -> list[StudyRun]:
        return [self._run(arm, rate, seed) for seed in self.seeds[: self.tuning_seeds]]

    def _run(self, arm: Arm, learning_rate: float, seed: int) -> StudyRun:
        plan = replace(
            self.plan,
            recipe=arm.recipe,
            fields=self.plan.fields | arm.fields,
            learning_rate=learning_rate,
            seed=seed,
            **arm.plan,
        )
        return StudyRun(arm.name, learning_rate, seed, plan)
