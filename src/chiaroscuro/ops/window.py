"""Softmax attention to the last few keys, in blocks of queries that each meet the keys before and beside them.

Shapes: B batch, N heads, T queries, K keys, H head channels, C blocks, S keys that a block meets.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from chiaroscuro.ops.attention import masked_attention
from chiaroscuro.ops.checks import require_finite


def window_attention(
    q_BNTH: Tensor,
    k_BNKH: Tensor,
    v_BNKH: Tensor,
    window: int,
    key_valid_BK: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention in which each query sees the last `window` of the valid keys, up to its own.

    The queries belong to the last T of the K keys. One whose own key is not valid, as padding, returns zeros. With each
    query 2 * window - 1 keys are computed, of which it sees `window`. (Sliding windows as of I. Beltagy and others,
    "Longformer", arXiv 2004.05150.) Returns (B, N, T, H). Raises ValueError for shapes that do not fit and for NaN or
    infinity on the CPU.
    """
    B, N, T, H = q_BNTH.shape
    K = k_BNKH.shape[2]
    valid_shape = (B, K) if key_valid_BK is None else tuple(key_valid_BK.shape)
    shapes = [tuple(k_BNKH.shape), tuple(v_BNKH.shape), valid_shape]
    if shapes != [(B, N, K, H), (B, N, K, H), (B, K)] or not 1 <= T <= K or window < 1:
        raise ValueError(
            f"window_attention: queries {tuple(q_BNTH.shape)}, keys {shapes[0]}, values {shapes[1]}, key mask "
            f"{shapes[2]} and a window of {window} do not fit together"
        )
    if key_valid_BK is None:
        there_BK = torch.ones(1, K, dtype=torch.bool, device=q_BNTH.device)
        out = _windows(q_BNTH, k_BNKH, v_BNKH, there_BK, window, dropout)
    else:
        # Padding goes to the front, so that valid keys lie side by side, and the queries in the same way.
        order_BK, order_BT = (valid.argsort(stable=True) for valid in (key_valid_BK, key_valid_BK[:, K - T :]))
        q, k, v = _by(order_BT, q_BNTH), _by(order_BK, k_BNKH), _by(order_BK, v_BNKH)
        moved = _windows(q, k, v, key_valid_BK.gather(1, order_BK), window, dropout)
        out = _by(order_BT.argsort(), moved) * key_valid_BK[:, None, K - T :, None]
    require_finite("window_attention", out)
    return out


def _by(order_BT: Tensor, x_BNTH: Tensor) -> Tensor:
    """The tokens in that order."""
    return x_BNTH.gather(2, order_BT[:, None, :, None].expand(x_BNTH.shape))


def _windows(q_BNTH: Tensor, k_BNKH: Tensor, v_BNKH: Tensor, there_BK: Tensor, window: int, dropout: float) -> Tensor:
    """Attention to those of the last `window` keys that are there; zeros where none of them is."""
    B, N, T, H = q_BNTH.shape
    K = k_BNKH.shape[2]
    window = min(window, K)
    size = min(window, T)  # queries of a block, which together see so many keys:
    span = size + window - 1
    blocks = -(-T // size)
    before, behind = window - 1 - (K - T), blocks * size - T  # keys that the first and the last block lack, or too many
    q = pad(q_BNTH, (0, 0, 0, behind)).reshape(B * N, blocks, size, H)
    k, v = (pad(x, (0, 0, before, behind)).flatten(0, 1).unfold(1, span, size).mT for x in (k_BNKH, v_BNKH))
    distance = torch.arange(span, device=q.device) - torch.arange(size, device=q.device)[:, None]
    there_BCS = pad(there_BK, (before, behind)).unfold(1, span, size)
    seen = ((distance >= 0) & (distance < window)) & there_BCS[:, :, None]
    out = masked_attention(q, k, v, seen.repeat_interleave(N if len(seen) > 1 else 1, 0), dropout)
    return out.view(B, N, blocks * size, H)[:, :, :T]
