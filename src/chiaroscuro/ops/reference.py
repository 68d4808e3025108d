"""The definition of each operator, written to be read, in float64 and in loops. For tests; nothing else imports this.

Shapes: D channels, T tokens, K keys, H head channels, W taps. One vector or one sequence at a time.
"""

import math

import torch
from torch import Tensor


def dct_matrix(D: int) -> Tensor:
    """C with C[k, n] = s_k cos(pi (2n + 1) k / 2D), so that dct(x) = C x and idct(X) = C^T X."""
    n = torch.arange(D, dtype=torch.float64)
    C = torch.cos(math.pi * (2 * n[None] + 1) * n[:, None] / (2 * D)) * math.sqrt(2 / D)
    C[0] = math.sqrt(1 / D)
    return C


def spectral_entropy(x_D: Tensor, dc_weight: float = 1.0) -> Tensor:
    """-sum p ln p / ln D of one vector's DCT power spectrum; 0 for a zero vector."""
    energy = (dct_matrix(x_D.shape[0]) @ x_D.double()).square()
    energy = torch.cat((dc_weight * energy[:1], energy[1:]))
    if energy.sum() == 0 or x_D.shape[0] == 1:
        return energy.sum() * 0
    p = energy / energy.sum()
    return sum((-value * value.log() for value in p if value > 0), torch.zeros((), dtype=torch.float64)) / math.log(
        len(p)
    )


def rbf_weights(x_TD: Tensor, gamma: float, causal: bool) -> Tensor:
    """(T, T) weights of one sequence, each row summing to one."""
    T = x_TD.shape[0]
    rows = []
    for i in range(T):
        seen = range(i + 1) if causal else range(T)
        row = [
            torch.exp(-gamma * (x_TD[i] - x_TD[j]).double().square().sum())
            if j in seen
            else x_TD.new_zeros(()).double()
            for j in range(T)
        ]
        rows.append(torch.stack(row) / torch.stack(row).sum())
    return torch.stack(rows)


def rbf_mix(x_TD: Tensor, v_TV: Tensor, gamma: float, causal: bool) -> Tensor:
    """Kernel-weighted mean of the values, (T, V), of one sequence."""
    return rbf_weights(x_TD, gamma, causal) @ v_TV.double()


def short_convolution(x_TD: Tensor, weight_WD: Tensor) -> Tensor:
    """y_t = sum_w weight_w * x_{t-w} of one sequence, (T, D)."""
    rows = []
    for t in range(len(x_TD)):
        terms = [weight_D * x_TD[t - w] for w, weight_D in enumerate(weight_WD) if w <= t]
        rows.append(torch.stack(terms).sum(0))
    return torch.stack(rows)


def attention(q_QH: Tensor, k_KH: Tensor, v_KH: Tensor, seen: list[list[int]]) -> Tensor:
    """Softmax attention of one head, (Q, H); `seen[i]` lists the keys query i may see, and zeros answer an empty
    list."""
    rows = []
    for q_H, keys in zip(q_QH, seen, strict=True):
        if not keys:
            rows.append(torch.zeros_like(q_H).double())
            continue
        scores = torch.stack([(q_H.double() * k_KH[j]).sum() / math.sqrt(q_H.shape[0]) for j in keys])
        rows.append(scores.softmax(0) @ v_KH[keys].double())
    return torch.stack(rows)
