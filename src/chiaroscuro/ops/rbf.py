"""RBF kernel mixing: each token becomes the kernel-weighted mean of the values it may see.

Shapes: B batch, T tokens, D model channels, F random features, C tokens per chunk, S chunks, V value channels.

    y_i = sum_j k(x_i, x_j) v_j / sum_j k(x_i, x_j),   k(a, b) = exp(-gamma |a - b|^2)            (paper, section 1)

Random features give k(a, b) = E[phi(a) phi(b)]. The usual cosine features estimate it with either sign, so a normaliser
made of them can reach zero; the exponential ones used here are positive (Choromanski et al., "Rethinking Attention with
Performers", arXiv 2009.14794, lemma 1):

    phi_f(x) = exp(sqrt(2 gamma) w_f . x - 2 gamma |x|^2) / sqrt(F),    w_f ~ N(0, 1)

A token's weight for itself needs no estimate, k(x, x) = 1, and is added exactly, so the normaliser is at least one.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from chiaroscuro.ops.accelerator import most_precise, without_autocast
from chiaroscuro.ops.checks import require_finite
from chiaroscuro.ops.chosen import Chosen

LARGEST_CHUNK = 64
# phi is at most exp(|w|^2 / 4), far beyond float32 in a wide model, but reached only by inputs aligned with w.
LARGEST_EXPONENT = 20.0


def rbf_mix(
    x_BTD: Tensor, v_BTV: Tensor, gamma: Tensor | float, causal: bool = True, valid_BT: Tensor | None = None
) -> Tensor:
    """Exact RBF kernel mixing in O(T^2 D). Returns (B, T, V). Raises ValueError for NaN or infinity on the CPU.

    `valid_BT` is False at padding, which is not mixed into other tokens.
    """
    require_finite("rbf_mix", x_BTD, v_BTV)
    weight_BTT = rbf_kernel(x_BTD, gamma)
    seen_BTT = torch.ones_like(weight_BTT, dtype=torch.bool)
    if causal:
        seen_BTT = seen_BTT.tril()
    if valid_BT is not None:
        itself = torch.eye(x_BTD.shape[1], dtype=torch.bool, device=x_BTD.device)
        seen_BTT = seen_BTT & (valid_BT[:, None] | itself)
    weight_BTT = torch.where(seen_BTT, weight_BTT, 0.0)
    return weight_BTT @ v_BTV / weight_BTT.sum(-1, keepdim=True)


def rbf_kernel(x_BTD: Tensor, gamma: Tensor | float) -> Tensor:
    """exp(-gamma |x_i - x_j|^2), (B, T, T)."""
    square_BT = x_BTD.square().sum(-1)
    distance_BTT = square_BT[:, :, None] + square_BT[:, None] - 2 * x_BTD @ x_BTD.mT
    distance_BTT = distance_BTT.clamp_min(0.0)
    distance_BTT = distance_BTT - torch.diag_embed(distance_BTT.diagonal(dim1=-2, dim2=-1))
    return torch.exp(-gamma * distance_BTT)


def random_frequencies(F: int, D: int) -> Tensor:
    """(F, D) Gaussian frequencies, orthogonal within each group of D, which lowers the variance of the kernel
    estimate."""
    groups = []
    for start in range(0, F, D):
        rows = min(D, F - start)
        Q, R = torch.linalg.qr(torch.randn(D, rows, dtype=torch.float64, device="cpu"))
        # LAPACK fixes signs, by which all columns would lean to one side; R knows them.
        directions = (Q * R.diagonal().sign()).T
        lengths = torch.randn(rows, D, dtype=torch.float64, device="cpu").norm(dim=1, keepdim=True)
        groups.append(directions * lengths)
    return torch.cat(groups).float()


def rbf_features(x_BTD: Tensor, frequencies_FD: Tensor, gamma: Tensor | float) -> Tensor:
    """Positive random features phi(x), (B, T, F), with E[phi(a) . phi(b)] = exp(-gamma |a - b|^2), in float32 at least:
    they may be larger than float16 knows."""
    x_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
    gamma = torch.as_tensor(gamma, dtype=x_BTD.dtype, device=x_BTD.device)
    with without_autocast(x_BTD.device):
        exponent = (2 * gamma).sqrt() * (x_BTD @ frequencies_FD.to(x_BTD.dtype).T)
    exponent = exponent - 2 * gamma * x_BTD.square().sum(-1, keepdim=True)
    return exponent.clamp_max(LARGEST_EXPONENT).exp() / math.sqrt(frequencies_FD.shape[0])


def rbf_feature_mix(
    phi_BTF: Tensor,
    v_BTV: Tensor,
    causal: bool = True,
    valid_BT: Tensor | None = None,
    chosen: Chosen | None = None,
    before_BFU: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """RBF kernel mixing from the features of `rbf_features`, in O(T F V) and without a T x T matrix.

    Returns the mixed values, (B, T, V) or for chosen tokens flat rows (M, V), and the running sum (B, F, V + 1) over
    all tokens so far of phi times value and phi, which is what `before_BFU` takes to go on where another call ended.
    Going on needs `causal`. Raises ValueError for NaN or infinity on the CPU.
    """
    require_finite("rbf_feature_mix", phi_BTF, v_BTV)
    dtype, v_BTV = v_BTV.dtype, v_BTV.to(phi_BTF.dtype)
    if before_BFU is not None and not causal:
        raise ValueError("rbf_feature_mix: only causal mixing can go on from earlier tokens")
    u_BTU = pad(v_BTV, (0, 1), value=1.0)
    key_BTF = phi_BTF if valid_BT is None else phi_BTF * valid_BT[..., None]
    itself = u_BTU.flatten(0, 1) if chosen is None else chosen.take(u_BTU)
    with without_autocast(phi_BTF.device):  # products are sums of exponentials, which half precision does not hold
        earlier, total_BFU = _sum_over_earlier(phi_BTF, key_BTF, u_BTU, chosen, before_BFU)
        mixed = itself + earlier
        if not causal:
            flipped = None if chosen is None else Chosen(chosen.mask_BT.flip(1))
            later, _ = _sum_over_earlier(phi_BTF.flip(1), key_BTF.flip(1), u_BTU.flip(1), flipped, None)
            mixed = mixed + (_flip_dense(later, u_BTU) if chosen is None else _flip_rows(later, chosen))
    mixed = (mixed[:, :-1] / mixed[:, -1:]).to(dtype)
    return (mixed.view_as(v_BTV) if chosen is None else mixed), total_BFU


def chunks(T: int) -> tuple[int, int]:
    """How many chunks T tokens are cut into, and the tokens of each; as even as can be, to leave little padding."""
    S = max(1, -(-T // LARGEST_CHUNK))
    return S, -(-T // S)


def _sum_over_earlier(
    phi_BTF: Tensor, key_BTF: Tensor, u_BTU: Tensor, chosen: Chosen | None, before_BFU: Tensor | None
) -> tuple[Tensor, Tensor]:
    """For each (chosen) token i the sum over j < i of (phi_i . phi_j) u_j, flat (M, U), and the sum over all j, (B,
    F, U)."""
    B, T, F = phi_BTF.shape
    U = u_BTU.shape[2]
    S, C = chunks(T)

    def cut(x: Tensor) -> Tensor:
        """(B, T, .) to (B * S, C, .), with zeros behind the last token."""
        return pad(x, (0, 0, 0, S * C - T)).reshape(B * S, C, x.shape[-1])

    query, key, u = cut(phi_BTF), cut(key_BTF), cut(u_BTU)
    # Sums over many chunks are kept in float32 at least.
    sums = (key.mT @ u).view(B, S, F, U).to(torch.promote_types(u.dtype, torch.float32))
    if before_BFU is not None:
        sums = torch.cat((before_BFU[:, None] + sums[:, :1], sums[:, 1:]), dim=1)
    upto = sums.cumsum(1)
    start = torch.zeros_like(upto[:, :1]) if before_BFU is None else before_BFU[:, None]
    before_chunk = torch.cat((start, upto[:, :-1]), dim=1).view(B * S, F, U).to(u.dtype)

    position = torch.arange(C, device=phi_BTF.device)
    if chosen is None:
        earlier = _read(query, key, u, before_chunk, position[None])
        return earlier.view(B, S * C, U)[:, :T].reshape(B * T, U), upto[:, -1]
    in_chunk = Chosen(cut(chosen.mask_BT[..., None]).squeeze(-1))
    position_SQ = in_chunk.pad(position.repeat(B * S)[in_chunk.flat_M])
    earlier = _read(in_chunk.pad(in_chunk.take(query)), key, u, before_chunk, position_SQ)
    return in_chunk.unpad(earlier), upto[:, -1]


def _read(query: Tensor, key: Tensor, u: Tensor, before_chunk: Tensor, position: Tensor) -> Tensor:
    """What each query sees before its chunk, and within it the keys at earlier positions."""
    earlier = torch.arange(key.shape[1], device=key.device) < position[..., None]
    return query @ before_chunk + torch.where(earlier, query @ key.mT, 0.0) @ u


def _flip_dense(flat: Tensor, like_BTU: Tensor) -> Tensor:
    return flat.view_as(like_BTU).flip(1).reshape_as(flat)


def _flip_rows(rows: Tensor, chosen: Chosen) -> Tensor:
    """Rows chosen from the flipped batch, back in the order in which `chosen` takes them."""
    return chosen.take(Chosen(chosen.mask_BT.flip(1)).scatter(rows).flip(1))


def median_bandwidth(x: Tensor) -> Tensor:
    """gamma = 1 / median |x_i - x_j|^2 over pairs of the first 512 vectors of x (..., D): the median heuristic, under
    which a typical pair has weight 1/e. Vectors that are all alike give 1 / 2D, the value for unit variance."""
    vectors = x.detach().flatten(0, -2)[:512].to(most_precise(x.device))
    distances = torch.pdist(vectors).square()
    median = distances.median() if distances.numel() else distances.new_zeros(())
    return torch.where(median > 0, 1 / median.clamp_min(1e-12), 1 / (2 * x.shape[-1])).to(x.dtype)
