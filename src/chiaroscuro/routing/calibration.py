"""Thresholds and bandwidths from data.

The paper takes the 33rd and 67th percentile of the entropy of validation-text token embeddings. Here each router has
its own thresholds and takes the percentiles of the entropies it is itself given, because these differ between layers
and move during training.

Shapes: B batch, T tokens, D model channels.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from chiaroscuro.mixers import Mixer
from chiaroscuro.ops.accelerator import most_precise
from chiaroscuro.routing.evaluating import evaluating, uncompiled
from chiaroscuro.routing.router import threshold_routers


@dataclass(frozen=True)
class Calibration:
    """What one router was set to: its thresholds, and the mean and standard deviation of the scores it saw, which for
    the threshold router are entropies."""

    layer: int
    low: float
    high: float
    mean: float
    deviation: float


def follow(model: nn.Module, gathered: Callable[[Tensor], Tensor] = lambda score_N: score_N) -> None:
    """Set the thresholds of every threshold router to its quantiles of the scores that the tokens of the last forward
    pass in training have by the weights of now. To be called after each step of the optimiser: what a step learns moves
    all scores, at first by so much that thresholds would part few tokens or most of them. Later tokens decide nothing
    about earlier ones by it, as the largest scores of a batch would.

    gathered: makes of the scores of one process those of all. Raises NotFinite for a score that is NaN or infinite.
    """
    for router in threshold_routers(model):
        score_N = router.scores_seen()
        router.seen = None
        if score_N is not None and len(score_N := gathered(score_N)):
            router.part(score_N)


def calibrate(
    model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor | None = None, fit_mixers: bool = False
) -> list[Calibration]:
    """Set the thresholds of every threshold router to its quantiles of what it sees on `input_ids_BT`, as `between`
    takes them: the 33rd and 67th percentile, or what leaves its share above them. A router whose share is up to the
    text ("recurrence" without one) is left alone.

    One forward pass does all layers: a router's thresholds are set before it decides, so each layer sees the input
        that the calibrated layers below it produce. `input_ids_BT` should be held-out text, at least some thousand
        tokens, on the device of the model or not; of padding, which the mask tells, nothing is taken. With `fit_mixers`
        the mixers also take what starts from data, such as the bandwidth of the RBF kernel. The model is run in
        evaluation mode, not compiled, and left in the mode it was in.
    """
    found: list[Calibration] = []
    # Weights that are kept elsewhere until they are needed have no device of their own.
    device = next((each.device for each in model.parameters() if not each.is_meta), input_ids_BT.device)
    given: dict[str, Any] = {} if attention_mask_BT is None else {"attention_mask": attention_mask_BT.to(device)}
    if hasattr(model, "config"):  # a model of transformers, which would fill a cache
        given["use_cache"] = False

    def of_tokens(values: Tensor) -> Tensor:
        """(B, T, ...) as rows, those of padding left out."""
        return values.flatten(0, 1) if attention_mask_BT is None else values[attention_mask_BT.to(values.device).bool()]

    def set_thresholds(router: Any, args: tuple[Any, ...]) -> None:
        score = of_tokens(router.score(*args))
        score = score.to(most_precise(score.device))
        low, high = router.part(score)
        found.append(Calibration(router.layer, low, high, float(score.mean()), float(score.std(correction=0))))

    def fit(mixer: Any, args: tuple[Tensor, ...]) -> None:
        mixer.fit(of_tokens(args[0])[None])

    keeping = [router for router in threshold_routers(model) if router.keeps_share]
    hooks = [router.register_forward_pre_hook(set_thresholds) for router in keeping]
    if fit_mixers:
        hooks += [m.register_forward_pre_hook(fit) for m in model.modules() if isinstance(m, Mixer)]
    if hooks:
        with evaluating(model), uncompiled(model), ExitStack() as stack:
            for hook in hooks:
                stack.enter_context(hook)
            # With its head: of a model spread over processes (FSDP) no part may be called before the whole.
            model(input_ids_BT.to(device), **given)
    return found
