"""Attention of chosen queries as an operator of torch, with kernels for the CPU and for GPUs: opaque to torch.compile,
and counted as one by what counts FLOPs.

Shapes: B batch, N heads, Q queries, K keys, H head channels.
"""

from typing import Any

import torch
from torch import Tensor

from chiaroscuro.ops import attention_cpu
from chiaroscuro.ops.accelerator import has_triton


def has_kernel(q: Tensor) -> bool:
    """Whether `tiled_attention` takes queries such as these."""
    if q.device.type == "cuda" and has_triton():
        from chiaroscuro.ops.attention_triton import WIDEST_HEAD

        return q.shape[-1] <= WIDEST_HEAD and q.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return q.device.type == "cpu"


@torch.library.custom_op("chiaroscuro::tiled_attention", mutates_args=(), device_types="cpu")
def tiled_attention(
    q: Tensor, k: Tensor, v: Tensor, visible_BQ: Tensor, key_valid_BK: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs (B, N, Q, H) as of `chiaroscuro.ops.chosen_attention`, without its checks of shape, and what the backward
    pass needs of the scores, (B, N, Q)."""
    out = _heads_together(q)
    return out, attention_cpu.forward(q, k, v, visible_BQ, key_valid_BK, out)


@tiled_attention.register_kernel("cuda")
def _(q: Tensor, k: Tensor, v: Tensor, visible_BQ: Tensor, key_valid_BK: Tensor | None) -> tuple[Tensor, Tensor]:
    from chiaroscuro.ops import attention_triton

    out = _heads_together(q)
    return out, attention_triton.forward(q, k, v, visible_BQ, key_valid_BK, out)


@tiled_attention.register_fake
def _(q: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor]:
    return _heads_together(q), q.new_empty(q.shape[:3], dtype=attention_cpu.lse_dtype(q))


@torch.library.custom_op("chiaroscuro::tiled_attention_backward", mutates_args=(), device_types="cpu")
def tiled_attention_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    visible_BQ: Tensor,
    key_valid_BK: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    return attention_cpu.backward(gradient, q, k, v, out, lse, visible_BQ, key_valid_BK)


@tiled_attention_backward.register_kernel("cuda")
def _(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    from chiaroscuro.ops import attention_triton

    return attention_triton.backward(*given)


@tiled_attention_backward.register_fake
def _(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
    q, k, v, visible_BQ, key_valid_BK, out, lse = ctx.saved_tensors
    return *tiled_attention_backward(gradient, q, k, v, out, lse, visible_BQ, key_valid_BK), None, None


tiled_attention.register_autograd(_gradients, setup_context=_keep)


def _heads_together(q: Tensor) -> Tensor:
    """Memory for outputs, (B, N, Q, H), in the order in which the output projection reads them: the heads of a query
    behind each other."""
    B, N, Q, H = q.shape
    return q.new_empty(B, Q, N, H).transpose(1, 2)
