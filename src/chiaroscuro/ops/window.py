"""Softmax attention to the last few keys, in blocks of queries that each meet the keys before and beside them.

Shapes: B batch, N heads, T queries, K keys, H head channels, C blocks, S keys that a block meets.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from chiaroscuro.ops.checks import require_finite


def window_attention(
    q_BNTH: Tensor,
    k_BNKH: Tensor,
    v_BNKH: Tensor,
    window: int,
    key_valid_BK: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention in which each query sees the valid ones of the last `window` keys, up to its own.

    The queries belong to the last T of the K keys. A query that sees no valid key returns zeros. With each
    query 2 * window - 1 keys are computed, of which it sees `window`. (Sliding windows as of I. Beltagy and others,
    "Longformer", arXiv 2004.05150.) Returns (B, N, T, H). Raises ValueError for shapes that do not fit and for NaN or
    infinity on the CPU.
    """
    B, N, T, H = q_BNTH.shape
    K = k_BNKH.shape[2]
    valid_shape = (B, K) if key_valid_BK is None else tuple(key_valid_BK.shape)
    shapes = [tuple(k_BNKH.shape), tuple(v_BNKH.shape), valid_shape]
    if shapes != [(B, N, K, H), (B, N, K, H), (B, K)] or K < T or window < 1:
        raise ValueError(
            f"window_attention: queries {tuple(q_BNTH.shape)}, keys {shapes[0]}, values {shapes[1]}, key mask "
            f"{shapes[2]} and a window of {window} do not fit together"
        )
    window = min(window, K)
    size = min(window, T)  # queries of a block, which together see so many keys:
    span = size + window - 1
    blocks = -(-T // size)
    before, behind = window - 1 - (K - T), blocks * size - T  # keys that the first and the last block lack, or too many
    q = pad(q_BNTH, (0, 0, 0, behind)).reshape(B * N, blocks, size, H)
    k, v = (pad(x, (0, 0, before, behind)).flatten(0, 1).unfold(1, span, size).mT for x in (k_BNKH, v_BNKH))
    distance = torch.arange(span, device=q.device) - torch.arange(size, device=q.device)[:, None]
    there_BK = torch.ones(1, K, dtype=torch.bool, device=q.device) if key_valid_BK is None else key_valid_BK
    there_BCS = pad(there_BK, (before, behind)).unfold(1, span, size)
    mask = ((distance >= 0) & (distance < window)) & there_BCS[:, :, None]
    sighted = mask.any(-1, keepdim=True)
    # A query that sees nothing is shown everything and its output dropped: softmax over no key is not a number.
    mask, sighted = (x.repeat_interleave(N if len(x) > 1 else 1, 0) for x in (mask | ~sighted, sighted))
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    out = torch.where(sighted, out, 0.0).view(B, N, blocks * size, H)[:, :, :T]
    require_finite("window_attention", out)
    return out
