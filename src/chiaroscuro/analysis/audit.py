"""Whether the numbers of a model can be trusted: properties that a causal language model has to have, and that routing
could break without anybody noticing.

Shapes: B batch, T tokens, V outputs per token, O operators.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from chiaroscuro.flops import executed_forward_flops
from chiaroscuro.mixers import Mixer
from chiaroscuro.routing import RoutedMixer, Routing, starving, threshold_routers, utilisation
from chiaroscuro.routing.evaluating import uncompiled

ROWS, TOKENS = 3, 40  # what the checks that take a gradient per token look at
SAME = 1e-6  # in standard deviations of the outputs; the models are run in float64, some round to float32 on their way
FLOPS_APART = 0.02
QUANTILES_APART = 0.15  # of a calibrated threshold, on other text than it was calibrated on

Verdict = tuple[bool | None, str]


@dataclass(frozen=True)
class Finding:
    """What one check found. holds: None where it does not apply. detail: what was measured, or why there was nothing
    to."""

    check: str
    holds: bool | None
    detail: str


def audit(
    model: nn.Module,
    input_ids_BT: Tensor,
    calibrated: bool = True,
    progress: Callable[[Sequence[str]], Iterable[str]] = lambda checks: checks,
) -> list[Finding]:
    """Run every check on a copy of `model` in float64 and evaluation mode.

    model: a causal language model of transformers, or the body of one. input_ids_BT: text without padding, at least
        two rows of eight tokens; what is said of thresholds and shares is said of all of it, and some thousand tokens
        make that meaningful. calibrated: whether thresholds were found on tokens like these; where they were not, it
        says nothing of them that other tokens are routed elsewhere. A check that a model cannot even be run for has
        failed. `progress` wraps the names of the checks while they are gone through. Raises ValueError for too little
        text.
    """
    if len(input_ids_BT) < 2 or input_ids_BT.shape[1] < 8:
        raise ValueError(f"audit needs at least two rows of eight tokens, got {tuple(input_ids_BT.shape)}")
    model = copy.deepcopy(model).double().eval()
    found = []
    with uncompiled(model):
        for name in progress(list(CHECKS)):
            try:
                holds, detail = CHECKS[name](model, input_ids_BT)
                if name in OF_SHARES and not calibrated:
                    holds, detail = None, f"not of the text that routers were calibrated on: {detail}"
            except Exception as error:  # whatever the code of others may raise
                holds, detail = False, f"{type(error).__name__}: {error}"
            found.append(Finding(name, holds, detail))
    return found


def _outputs(model: nn.Module, **inputs: Any) -> Tensor:
    return _of_tokens(model(**{"use_cache": False} | inputs))


def _of_tokens(output: Any) -> Tensor:
    """Logits (B, T, V), or the hidden states of a body."""
    found: Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
    return found


def _few(ids_BT: Tensor) -> Tensor:
    return ids_BT[:ROWS, :TOKENS]


def _others(ids_BT: Tensor) -> Tensor:
    """Other tokens of the same text."""
    return ids_BT.flatten().roll(1 + ids_BT.shape[1] // 2).view_as(ids_BT)


def _apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in standard deviations of what is expected."""
    return float((found - expected).abs().max() / expected.std())


def _embedded(model: Any, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (B, T, D) that take a gradient, and one number (B, T) per output of the model on them: a random
    mixture of its channels. The model is given ids, which a router may go by."""
    embedded: list[Tensor] = []

    def cut(embedding: nn.Module, args: Any, embeds_BTD: Tensor) -> Tensor:
        embedded.append(embeds_BTD.detach().requires_grad_())
        return embedded[-1]

    with model.get_input_embeddings().register_forward_hook(cut):
        out_BTV = _outputs(model, input_ids=ids_BT)
    (embeds_BTD,) = embedded
    mixture_V = torch.rand(out_BTV.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return embeds_BTD, out_BTV.double() @ mixture_V.to(out_BTV.device)


@torch.enable_grad()
def _no_later_token(model: nn.Module, ids_BT: Tensor) -> Verdict:
    """By gradient, and for choices, which have none, by exchanging what comes later."""
    ids_BT = _few(ids_BT)
    T = ids_BT.shape[1]
    embeds_BTD, out_BT = _embedded(model, ids_BT)
    for t in range(T - 1):
        (gradient,) = torch.autograd.grad(out_BT[:, t].sum(), embeds_BTD, retain_graph=True)
        later_T = gradient[:, t + 1 :].abs().amax((0, 2))
        if later_T.max() != 0.0:  # NaN is not zero either
            s = t + 1 + int(later_T.argmax())
            return False, f"the output at token {t} depends on token {s}: gradient {float(later_T.max()):.1e}"
    with torch.no_grad():
        before = _outputs(model, input_ids=ids_BT)
        for cut in (T // 4, T // 2, 3 * T // 4):
            exchanged = torch.cat((ids_BT[:, :cut], _others(ids_BT)[:, cut:]), dim=1)
            apart = _apart(_outputs(model, input_ids=exchanged)[:, :cut], before[:, :cut])
            if not apart <= SAME:
                return False, f"other tokens from {cut} on change outputs before them by {apart:.1e} deviations"
    return True, f"{T - 1} gradients are zero behind their token"


@torch.enable_grad()
def _no_other_row(model: nn.Module, ids_BT: Tensor) -> Verdict:
    ids_BT = _few(ids_BT)
    B = len(ids_BT)
    embeds_BTD, out_BT = _embedded(model, ids_BT)
    for b in range(B):
        (gradient,) = torch.autograd.grad(out_BT[b].sum(), embeds_BTD, retain_graph=True)
        others = torch.cat((gradient[:b], gradient[b + 1 :])).abs().max()
        if others != 0.0:
            return False, f"outputs of row {b} depend on another row: gradient {float(others):.1e}"
    with torch.no_grad():
        exchanged = torch.cat((ids_BT[:1], _others(ids_BT)[1:]))
        apart = _apart(_outputs(model, input_ids=exchanged)[0], _outputs(model, input_ids=ids_BT)[0])
    if not apart <= SAME:
        return False, f"other rows change the outputs of the first by {apart:.1e} deviations"
    return True, f"{B} gradients are zero outside their row"


@torch.no_grad()
def _cache_is_full(model: nn.Module, ids_BT: Tensor) -> Verdict:
    ids_BT = _few(ids_BT)
    T = ids_BT.shape[1]
    pieces = ids_BT.split([T // 2, 1, 1, 1, T - T // 2 - 3], dim=1)
    cache, found = None, []
    for piece in pieces:
        output = model(input_ids=piece, past_key_values=cache, use_cache=True)
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            return None, "the model keeps no cache of keys and values"
        found.append(_of_tokens(output))
    apart = _apart(torch.cat(found, dim=1), _outputs(model, input_ids=ids_BT))
    return apart <= SAME, f"outputs in {len(pieces)} pieces are {apart:.1e} deviations apart"


@torch.no_grad()
def _sparse_is_dense(model: nn.Module, ids_BT: Tensor) -> Verdict:
    layers = [layer for layer in _routed(model) if layer.router is not None and layer.router.hard]
    if not layers:
        return None, "no layer sends each token to one operator"
    before = [layer.dispatch for layer in layers]
    found = {}
    try:
        for way in ("sparse", "dense"):
            for layer in layers:
                layer.dispatch = way
            found[way] = _outputs(model, input_ids=_few(ids_BT))
    finally:
        for layer, way in zip(layers, before, strict=True):
            layer.dispatch = way
    apart = _apart(found["sparse"], found["dense"])
    return apart <= SAME, f"{len(layers)} layers, outputs {apart:.1e} deviations apart"


@torch.no_grad()
def _padding_is_nothing(model: nn.Module, ids_BT: Tensor) -> Verdict:
    known = inspect.signature(model.forward).parameters
    if "attention_mask" not in known:
        return None, "the model takes no attention_mask"
    ids_BT = _few(ids_BT)
    texts = [row[: len(row) - 2 * index] for index, row in enumerate(ids_BT)]
    alone = [_outputs(model, input_ids=text[None])[0] for text in texts]
    apart = []
    for left in (False, True):
        gaps = [ids_BT.shape[1] - len(text) for text in texts]
        pads = [(gap, 0) if left else (0, gap) for gap in gaps]
        mask_BT = torch.stack([pad(torch.ones_like(text), by) for text, by in zip(texts, pads, strict=True)])
        inputs = {
            "input_ids": torch.stack([pad(text, by) for text, by in zip(texts, pads, strict=True)]),
            "attention_mask": mask_BT,
        }
        if "position_ids" in known:
            inputs["position_ids"] = (mask_BT.cumsum(1) - 1).clamp_min(0)
        found = [row[mask.bool()] for row, mask in zip(_outputs(model, **inputs), mask_BT, strict=True)]
        apart += [_apart(row, text) for row, text in zip(found, alone, strict=True)]
    worst = float(torch.tensor(apart).max())  # unlike Python's, it does not pass over NaN
    return worst <= SAME, f"padding on either side moves outputs by {worst:.1e} deviations"


@torch.no_grad()
def _plan_is_executed(model: Any, ids_BT: Tensor) -> Verdict:
    if not hasattr(model, "flops"):
        return None, "the model plans no FLOPs"
    routing = model(input_ids=ids_BT, use_cache=False, output_routing=True).routing
    ratio = executed_forward_flops(model, ids_BT) / model.flops(*ids_BT.shape, routing).total
    found = f"executed to planned {ratio:.4f}"
    if ratio > 1.0 + FLOPS_APART and (reason := _computes_unseen_pairs(model)):
        return None, f"{reason}: {found}"
    return abs(ratio - 1.0) <= FLOPS_APART, found


def _computes_unseen_pairs(model: Any) -> str | None:
    """Why a model is known to compute pairs of tokens that do not see each other, which no plan counts."""
    if any(isinstance(module, Mixer) and module.window is not None for module in model.modules()):
        return "windows are computed in whole blocks for all tokens"
    if model.config._attn_implementation == "eager":
        return "eager attention computes later keys, too"
    return None


@torch.no_grad()
def _thresholds_fit(model: nn.Module, ids_BT: Tensor) -> Verdict:
    apart: dict[str, float] = {}

    def look(router: Any, args: tuple[Any, ...]) -> None:
        score = router.score(*args).flatten()
        for quantile, threshold in zip(router.quantiles, router.thresholds, strict=True):
            share = float((score < threshold).double().mean())
            apart[f"layer {router.layer + 1}: {share:.2f} of tokens below the threshold for {quantile:.2f}"] = abs(
                share - quantile
            )

    with ExitStack() as stack:
        for router in (each for each in threshold_routers(model) if each.keeps_share):
            stack.enter_context(router.register_forward_pre_hook(look))
        _outputs(model, input_ids=ids_BT)
    if not apart:
        return None, "no router has thresholds for a share"
    worst = max(apart, key=lambda name: apart[name])
    return apart[worst] <= QUANTILES_APART, worst


@torch.no_grad()
def _no_operator_starves(model: nn.Module, ids_BT: Tensor) -> Verdict:
    least: list[tuple[float, str]] = []
    starved: list[str] = []

    def look(layer: Any, args: Any, result: tuple[Tensor, Routing | None]) -> None:
        routing = result[1]
        if routing is None:
            return
        q_O = utilisation(routing.gates_BTO)
        share, name = min(zip(q_O.tolist(), layer.operators, strict=True))
        least.append((share, f"{name} in layer {layer.router.layer + 1}, {share:.1%}"))
        if starving(q_O, layer.operators):
            starved.append(least[-1][1])

    with ExitStack() as stack:
        for layer in _routed(model):
            if getattr(layer.router, "keeps_share", True):  # else operators get what the text has for them
                stack.enter_context(layer.register_forward_hook(look))
        _outputs(model, input_ids=ids_BT)
    if not least:
        return None, "no layer has a choice that is to keep to a share"
    return not starved, ", ".join(starved) or f"the least: {min(least)[1]}"


def _routed(model: nn.Module) -> list[RoutedMixer]:
    return [module for module in model.modules() if isinstance(module, RoutedMixer)]


OF_SHARES = ("thresholds are calibrated", "no operator starves")
CHECKS: dict[str, Callable[[nn.Module, Tensor], Verdict]] = {
    "no output depends on later tokens": _no_later_token,
    "no output depends on other rows": _no_other_row,
    "a cache gives what the full pass gives": _cache_is_full,
    "sparse dispatch gives what dense gives": _sparse_is_dense,
    "padding changes nothing": _padding_is_nothing,
    "planned FLOPs are executed": _plan_is_executed,
    "thresholds are calibrated": _thresholds_fit,
    "no operator starves": _no_operator_starves,
}
