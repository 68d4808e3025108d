"""Softmax attention of chosen queries, in blocks that stop at the last key their queries may see.

Shapes: B batch, N heads, Q queries, K keys, H head channels.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

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

    The queries are cut into blocks and each block is given the keys up to the last one it may see, so the causal
    triangle is skipped but for a strip one block wide. Returns (B, N, Q, H). Raises ValueError for shapes that do not
    fit and for NaN or infinity on the CPU.
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
    require_finite("chosen_attention", q_BNQH, k_BNKH, v_BNKH)
    block = block_size(Q)
    blocks = [
        _attend_block(
            q_BNQH[:, :, start : start + block],
            k_BNKH,
            v_BNKH,
            visible_BQ[:, start : start + block],
            key_valid_BK,
            dropout,
        )
        for start in range(0, Q, block)
    ]
    return torch.cat(blocks, dim=2) if blocks else torch.zeros_like(q_BNQH)


def block_size(Q: int) -> int:
    """Queries per block: a 64th of them, so that the masked strip is 2 % of the work, but neither so few that each
    call is mostly overhead nor so many that the strip grows with them."""
    return min(64, max(16, Q // 64))


def _attend_block(
    q: Tensor, k: Tensor, v: Tensor, visible_BQ: Tensor, key_valid_BK: Tensor | None, dropout: float
) -> Tensor:
    end = int(visible_BQ.max())
    if end > k.shape[2]:
        raise ValueError(f"chosen_attention: {end} visible and {k.shape[2]} given keys do not fit together")
    if end == 0:
        return torch.zeros_like(q)
    mask_BQK = torch.arange(end, device=q.device) < visible_BQ[..., None]
    if key_valid_BK is not None:
        mask_BQK = mask_BQK & key_valid_BK[:, None, :end]
    sighted_BQ1 = mask_BQK.any(-1, keepdim=True)
    # A query that sees nothing is shown everything and its output dropped: softmax over no key is not a number.
    mask_BNQK = (mask_BQK | ~sighted_BQ1)[:, None]
    out = scaled_dot_product_attention(q, k[:, :, :end], v[:, :, :end], attn_mask=mask_BNQK, dropout_p=dropout)
    return torch.where(sighted_BQ1[:, None], out, 0.0)
