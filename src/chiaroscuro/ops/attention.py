"""Softmax attention of chosen queries, with the keys they may not see really left out.

Shapes: B batch, N heads, Q queries, K keys, H head channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from chiaroscuro.ops.attention_cpu import ROW_BY_ROW, heads_apart
from chiaroscuro.ops.attention_op import has_kernel, tiled_attention
from chiaroscuro.ops.checks import require_finite


def chosen_attention(
    q_BNQH: Tensor,
    k_BNKH: Tensor,
    v_BNKH: Tensor,
    visible_BQ: Tensor,
    key_valid_BK: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention in which query i of row b sees the valid ones of the first `visible_BQ[b, i]` keys.

    Keys lie in the order of their positions, so one number per query says what causality lets it see: its own
        position plus one when all tokens are keys, its rank among the chosen plus one when only chosen tokens are.
        Queries of a row are in ascending order of that number, but for padding queries (0) anywhere; a query that
        sees no key returns zeros.

    Without dropout, kernels leave out what is not seen: on the CPU (`chiaroscuro.ops.attention_cpu`), and on GPUs for
    heads of at most 128 channels where Triton is installed (`chiaroscuro.ops.attention_triton`). Otherwise the queries
    are cut into blocks, each over the keys up to the last one it may see. Returns (B, N, Q, H). Raises ValueError for
    shapes that do not fit and for NaN or infinity on the CPU.
    """
    B, N, Q, H = q_BNQH.shape
    K = k_BNKH.shape[2]
    valid_shape = (B, K) if key_valid_BK is None else tuple(key_valid_BK.shape)
    shapes = [tuple(tensor.shape) for tensor in (k_BNKH, v_BNKH, visible_BQ)] + [valid_shape]
    if shapes != [(B, N, K, H), (B, N, K, H), (B, Q), (B, K)]:
        raise ValueError(
            f"chosen_attention: queries {tuple(q_BNQH.shape)}, keys {shapes[0]}, values {shapes[1]}, visible counts "
            f"{shapes[2]} and key mask {shapes[3]} do not fit together"
        )
    if has_kernel(q_BNQH) and dropout == 0.0:
        out, _ = tiled_attention(q_BNQH, k_BNKH, v_BNKH, visible_BQ, key_valid_BK)
    else:
        out = _in_blocks(q_BNQH, k_BNKH, v_BNKH, visible_BQ, key_valid_BK, dropout)
    require_finite("chosen_attention", out)  # what is seen and not finite makes the output so: one tensor to look at
    return out


def packed_attention(
    q_BNQH: Tensor, k_BNQH: Tensor, v_BNQH: Tensor, counts: Sequence[int], dropout: float = 0.0
) -> Tensor:
    """Causal attention among the first `counts[b]` entries of each row b; what is behind them is padding.

    Rows are taken together or one by one, whichever wastes less. Returns (B, N, Q, H), arbitrary at padding.
    """
    B, _, Q, _ = q_BNQH.shape
    on_cpu = q_BNQH.device.type == "cpu"
    if on_cpu:
        k_BNQH, v_BNQH = heads_apart(k_BNQH, Q), heads_apart(v_BNQH, Q)
    # Elsewhere many rows at once make up for pairs of padding.
    if not on_cpu or B == 1 or Q < ROW_BY_ROW:
        return scaled_dot_product_attention(q_BNQH, k_BNQH, v_BNQH, is_causal=True, dropout_p=dropout)
    out = torch.zeros_like(q_BNQH)
    for b, count in enumerate(counts):
        q, k, v = (x[b : b + 1, :, :count] for x in (q_BNQH, k_BNQH, v_BNQH))
        out[b : b + 1, :, :count] = scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
    return out


def _in_blocks(
    q: Tensor, k: Tensor, v: Tensor, visible_BQ: Tensor, key_valid_BK: Tensor | None, dropout: float
) -> Tensor:
    """Blocks of queries, each given the keys up to the last one that any of them may see, and a mask."""
    size = min(64, max(16, q.shape[2] // 64))
    parts = visible_BQ.split(size, dim=1)
    # An accelerator is waited for once, not for each block.
    ends = torch.stack([part.max() for part in parts]).tolist() if visible_BQ.numel() else [0] * len(parts)
    if max(ends) > k.shape[2]:
        raise ValueError(f"chosen_attention: {max(ends)} visible and {k.shape[2]} given keys do not fit together")
    blocks = [
        _attend_block(block, k[:, :, :end], v[:, :, :end], visible, key_valid_BK, dropout)
        for block, visible, end in zip(q.split(size, dim=2), parts, ends, strict=True)
    ]
    return torch.cat(blocks, dim=2)


def _attend_block(
    q: Tensor, k: Tensor, v: Tensor, visible_BQ: Tensor, key_valid_BK: Tensor | None, dropout: float
) -> Tensor:
    end = k.shape[2]
    if end == 0:
        return torch.zeros_like(q)
    mask_BQK = torch.arange(end, device=q.device) < visible_BQ[..., None]
    if key_valid_BK is not None:
        mask_BQK = mask_BQK & key_valid_BK[:, None, :end]
    return masked_attention(q, k, v, mask_BQK[:, None], dropout)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, dropout: float) -> Tensor:
    """Scaled dot-product attention of queries (..., Q, H) to the keys that each has seen, (..., Q, K); zeros where it
    has seen none."""
    sighted = seen.any(-1, keepdim=True)
    # A query that sees nothing is shown everything and its output dropped: softmax over no key is not a number.
    out = scaled_dot_product_attention(q, k, v, attn_mask=seen | ~sighted, dropout_p=dropout)
    return torch.where(sighted, out, 0.0)
