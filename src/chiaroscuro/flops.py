"""FLOPs that a call really executes, and ratios against the same-size full-attention model.

What a model plans to spend it says itself (`ChiarForCausalLM.flops`). Here torch's FlopCounterMode watches what is
run, under the same convention (`chiaroscuro.mixers.flops`); it is told of the kernels it does not know: real FFTs,
products of groups of rows with a matrix each, and scaled dot-product attention on the CPU and with the causal triangle
left out. A kernel that is given a mask computes every pair, and is counted so; of the masked tiles of our own kernel,
as of a causal one's, the pairs that are seen.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from chiaroscuro.mixers.flops import Flops, fft_flops, linear_flops
from chiaroscuro.modeling import ChiarConfig, ChiarForCausalLM, ChiarForSequenceClassification
from chiaroscuro.ops.attention_cpu import computed_pairs
from chiaroscuro.routing.evaluating import evaluating

TOGETHER = 2048  # tokens, of a batch that is measured, for all of which outputs may not fit into memory


def executed_flops(run: Callable[[], Any]) -> float:
    """FLOPs of every kernel that `run()` calls, backward passes included if it makes any. Raises ValueError for flex
    attention, into which the counter cannot look."""
    mapping = _fft_formulas() | _attention_formulas() | _tiled_formulas() | _spectral_formulas() | _grouped_formulas()
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        try:
            run()
        except TypeError as error:
            if "higher_order.flex_attention" not in str(error):
                raise
            raise ValueError("FLOPs of flex_attention are not counted: set another attn_implementation") from error
    return float(counter.get_total_flops())


def executed_forward_flops(model: nn.Module, input_ids: torch.Tensor, training: bool = False) -> float:
    """FLOPs of one forward pass without a cache, in evaluation mode or as in training."""
    with evaluating(model):
        model.train(training)
        return executed_flops(lambda: model(input_ids, use_cache=False))


def planned_flops(config: ChiarConfig, batch_size: int, seq_len: int) -> Flops:
    """What a language model of this configuration plans to spend in a forward pass, without its weights being made."""
    with torch.device("meta"):
        return ChiarForCausalLM(config).flops(batch_size, seq_len)


def flops_ratios(
    model: ChiarForCausalLM | ChiarForSequenceClassification,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> dict[str, float]:
    """What `model` spends on `input_ids`, divided by what the same-size full attention spends.

    attention_ratio and total_ratio are planned from where the tokens of `input_ids` go, executed_ratio is counted while
    both run; training_ratio is the same of a forward pass in training, where a router may explore. The sequences are
    run a few at a time, without their padding.
    """
    twin_config: ChiarConfig = model.config.twin()
    with torch.device(model.device):
        twin = type(model)(twin_config)
    twin.set_attn_implementation(model.config._attn_implementation)  # or other kernels would be counted
    parts = [part.to(model.device) for part in _without_padding(input_ids, attention_mask)]
    ours = torch.stack([_spent(model, part) for part in parts]).sum(0)
    full = torch.zeros_like(ours)
    for shape, count in Counter(part.shape for part in parts).items():  # whatever the tokens
        full += count * _spent(twin, torch.zeros(shape, dtype=torch.long, device=twin.device))
    names = ("attention_ratio", "total_ratio", "executed_ratio", "training_ratio")
    return dict(zip(names, (ours / full).tolist(), strict=True))


def _without_padding(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """Rows of equal length together, a few at a time."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    lengths = mask.sum(1)
    for length in lengths[lengths > 0].unique().tolist():
        rows = lengths == length
        yield from input_ids[rows][mask[rows].bool()].view(-1, length).split(max(1, TOGETHER // length))


def _spent(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """FLOPs of a forward pass, (4,): of attention and of all, as planned from where the tokens go; executed; executed
    as in training."""
    routing = []
    with evaluating(model):
        executed = executed_flops(
            lambda: routing.append(model(input_ids, use_cache=False, output_routing=True).routing)
        )
    planned: Flops = model.flops(*input_ids.shape, *routing)
    trained = executed_forward_flops(model, input_ids, training=True)
    return torch.tensor([planned.attention, planned.total, executed, trained], dtype=torch.float64)


def _fft_formulas() -> dict[Any, Callable[..., float]]:
    def forward(shape: Sequence[int], *args: Any, out_shape: Any = None) -> float:
        return fft_flops(math.prod(shape[:-1]), shape[-1])

    def inverse(shape: Sequence[int], dim: Any, normalization: int, length: int, *, out_shape: Any = None) -> float:
        return fft_flops(math.prod(shape[:-1]), length)

    return {torch.ops.aten._fft_r2c: forward, torch.ops.aten._fft_c2r: inverse}


def _attention_formulas() -> dict[Any, Callable[..., float]]:
    """Per kernel the place of `is_causal` among its arguments; the queries stand first, after the gradient in a
    backward."""
    aten = torch.ops.aten
    forward = {
        aten._scaled_dot_product_flash_attention_for_cpu: 4,
        aten._scaled_dot_product_flash_attention: 4,
        aten._scaled_dot_product_efficient_attention: 6,
        aten._scaled_dot_product_cudnn_attention: 6,
    }
    backward = {
        aten._scaled_dot_product_flash_attention_for_cpu_backward: 7,
        aten._scaled_dot_product_flash_attention_backward: 11,
        aten._scaled_dot_product_efficient_attention_backward: 11,
    }
    formulas: dict[Any, Callable[..., float]] = {kernel: _attention(place, False) for kernel, place in forward.items()}
    return formulas | {kernel: _attention(place, True) for kernel, place in backward.items()}


def _tiled_formulas() -> dict[Any, Callable[..., float]]:
    """They are given the tensors themselves, since what is computed depends on which tokens were chosen."""

    def forward(q: Tensor, k: Tensor, v: Tensor, visible_BQ: Tensor, *args: Any, out_val: Any = None) -> float:
        pairs = computed_pairs(visible_BQ, k.shape[2]) if q.device.type == "cpu" else int(visible_BQ.sum())
        return 4.0 * q.shape[1] * q.shape[3] * pairs

    def backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any, out_val: Any = None) -> float:
        return 2.5 * forward(q, k, v, args[2])

    for formula in (forward, backward):
        formula.__dict__["_get_raw"] = True
    ops = torch.ops.chiaroscuro
    return {ops.tiled_attention: forward, ops.tiled_attention_backward: backward}


def _spectral_formulas() -> dict[Any, Callable[..., float]]:
    """The kernels for GPUs multiply by a matrix."""

    def forward(x: Sequence[int], matrix: Sequence[int], *args: Any, out_shape: Any = None) -> float:
        return linear_flops(x[0], *matrix)

    def inverse(X: Sequence[int], matrix: Sequence[int], w: Any, chosen: Any, *, out_shape: Any = None) -> float:
        return linear_flops(out_shape[0], *matrix)

    return {torch.ops.chiaroscuro.fused_spectrum: forward, torch.ops.chiaroscuro.fused_inverse: inverse}


def _grouped_formulas() -> dict[Any, Callable[..., float]]:
    """Of mixtures of experts. Of two matrices the inner dimension is that of all groups, else an axis of the result."""

    def count(a: Sequence[int], b: Sequence[int], *args: Any, out_shape: Any = None, **kwargs: Any) -> float:
        return 2.0 * math.prod(a) * b[-1] if len(a) == len(b) == 2 else 2.0 * math.prod(out_shape) * a[-1]

    return {torch.ops.aten._grouped_mm: count}


def _attention(causal_place: int, backward: bool) -> Callable[..., float]:
    """Two products of (Q, H) and (K, H) per head, five in a backward pass; with `is_causal` only the pairs of the
    triangle."""

    def count(*args: Any, out_shape: Any = None, is_causal: bool = False, **kwargs: Any) -> float:
        (B, N, Q, H), (_, _, K, _) = args[1:3] if backward else args[:2]
        causal = args[causal_place] if len(args) > causal_place else is_causal
        pairs = Q * (Q + 1) / 2 if causal else Q * K
        return (5 if backward else 2) * 2.0 * B * N * pairs * H

    return count
