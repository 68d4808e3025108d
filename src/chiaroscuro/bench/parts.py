"""Cases of parts: attention alone, the spectral path, a layer.

Shapes: B batch, T tokens, N heads, H head channels, D model channels.
"""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from chiaroscuro.bench.case import (
    BLEND,
    DOUBLE,
    ENTROPY,
    FULL,
    HALF,
    OURS,
    OWN,
    Case,
    HalfRouter,
    Keys,
    Sizes,
    close,
    forward_only,
    half,
    shown,
)
from chiaroscuro.mixers import NO_CONTEXT, AttentionMixer, Context, DCTMixer, Work
from chiaroscuro.mixers.flops import fft_flops, linear_flops
from chiaroscuro.ops import (
    Chosen,
    chosen_attention,
    filtered_idct,
    packed_attention,
    packed_dct_and_entropy,
    rotary_tables,
)
from chiaroscuro.ops.dct import by_matrix, slots
from chiaroscuro.routing import RoutedMixer, ThresholdRouter, calibrate


def op(sizes: Sizes, keys: Keys, at_most: dict[str, float]) -> Case:
    """Attention alone, heads already split."""
    B, T, N, H = sizes.batch, sizes.length, sizes.heads, sizes.width // sizes.heads
    options: dict[str, Any] = {"device": sizes.device, "dtype": sizes.dtype}
    q, k, v = (torch.randn(B, N, T, H, **options) for _ in range(3))
    chosen = Chosen(half(B, T, sizes.device))
    taken = [chosen.pad(chosen.take(x.transpose(1, 2))).transpose(1, 2).contiguous() for x in (q, k, v)]
    visible = chosen.pad(torch.arange(1, T + 1, device=sizes.device).repeat(B)[chosen.flat_M])

    def full() -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True)

    def ours() -> Tensor:
        if keys == "routed":
            return packed_attention(taken[0], taken[1], taken[2], chosen.counts)
        return chosen_attention(taken[0], k, v, visible)

    def check() -> None:
        mask = chosen.mask_BT
        allowed = torch.ones(T, T, dtype=torch.bool, device=sizes.device).tril()
        if keys == "routed":
            allowed = allowed & mask[:, None, None, :] | torch.eye(T, dtype=torch.bool, device=sizes.device)
        expected = scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        close(ours().transpose(1, 2).flatten(0, 1), expected.transpose(1, 2)[mask])

    def planned(mask: Tensor) -> float:
        pairs = Work.measured(mask, torch.ones_like(mask), routed_keys=keys == "routed").pairs
        return 2 * linear_flops(pairs, sizes.width, 1)

    return Case(
        f"attention op, {shown(sizes, keys)}",
        keys,
        {OURS: forward_only(ours), FULL: forward_only(full)},
        check,
        at_most,
        {OURS: lambda: planned(chosen.mask_BT), FULL: lambda: planned(torch.ones_like(chosen.mask_BT))},
    )


def spectral(sizes: Sizes, at_most: dict[str, float]) -> Case:
    """Entropy of all tokens, filter and inverse transform of half of them; against all of it for all tokens, with the
    transform as the definition has it: an FFT of the vector and its mirror image."""
    D = sizes.width
    x_MD = torch.randn(sizes.batch * sizes.length, D, device=sizes.device, dtype=sizes.dtype).float()
    chosen = Chosen(half(sizes.batch, sizes.length, sizes.device))
    w = torch.rand(D, device=sizes.device)
    k = torch.arange(D, device=sizes.device)
    turn = torch.polar((0.5 / D / (1 + (k == 0).float())).sqrt(), k * (-math.pi / (2 * D)))

    def ours() -> tuple[Tensor, Tensor]:
        spectrum, entropy = packed_dct_and_entropy(x_MD)
        return entropy, filtered_idct(spectrum, w, chosen.flat_M)

    def mirrored() -> tuple[Tensor, Tensor]:
        X = (torch.fft.rfft(torch.cat((x_MD, x_MD.flip(-1)), dim=-1))[:, :-1] * turn).real
        energy = X.square()
        p = (energy / energy.sum(-1, keepdim=True)).clamp_min(1e-30)
        numbers = torch.nn.functional.pad(X * w / turn, (0, 1))
        return -(p * p.log()).sum(-1) / math.log(D), torch.fft.irfft(numbers, n=2 * D)[:, :D]

    def check() -> None:
        entropy, filtered = ours()
        expected, expected_filtered = mirrored()
        close(entropy, expected)
        close(filtered, expected_filtered[chosen.flat_M])

    sides = {OURS: forward_only(ours), DOUBLE: forward_only(mirrored)}
    rows = len(x_MD)
    transform = linear_flops(1, D, slots(D)) if by_matrix(w, D) else fft_flops(1, D)
    planned = {
        OURS: lambda: (rows + len(chosen.flat_M)) * transform,
        DOUBLE: lambda: fft_flops(2 * rows, 2 * D),
    }
    return Case(f"spectral path, B {sizes.batch}, T {sizes.length}, d {D}", "all", sides, check, at_most, planned)


class _Layer(nn.Module):
    """A norm and what follows it, as in a pre-norm layer."""

    def __init__(self, mixer: RoutedMixer, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mixer = mixer

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        mixed, _ = self.mixer(self.norm(x), context)
        return x + mixed


def layer(sizes: Sizes, keys: Keys, at_most: dict[str, float]) -> Case:
    """Norm, routing, operators with their projections, residual."""
    B, T, D, N = sizes.batch, sizes.length, sizes.width, sizes.heads
    torch.manual_seed(0)
    x = torch.randn(B, T, D, device=sizes.device, dtype=sizes.dtype)
    tables = rotary_tables(torch.arange(T, device=sizes.device)[None], D // N)
    context = Context(rotary=(tables[0].to(sizes.dtype), tables[1].to(sizes.dtype)))
    own = ThresholdRouter(D, 2)
    routed = RoutedMixer({"dct": DCTMixer(D), "attention": AttentionMixer(D, N, keys)}, own)
    ours, full = _Layer(routed, D), _Layer(RoutedMixer({"attention": AttentionMixer(D, N)}), D)
    for module in (ours, full):
        module.to(sizes.device, sizes.dtype).eval()
    calibrate(ours, x)
    routers = {HALF: HalfRouter(own, half(B, T, sizes.device), sizes.dtype), OWN: own}

    def run(dispatch: Literal["sparse", "dense"], router: str = HALF) -> Tensor:
        routed.dispatch, routed.router = dispatch, routers[router]
        return ours(x, context)

    def planned(router: str) -> float:
        run("sparse", router)
        masks = [chosen.mask_BT for chosen in routed.route(ours.norm(x), context).chosen or ()]
        every = torch.ones_like(masks[0])
        works = [Work.measured(mask, every, keys == "routed", spectrum=True) for mask in masks]
        transforms = by_matrix(x, D)
        return routed.flops([replace(work, by_matrix=transforms) for work in works]).total

    return Case(
        f"layer, {shown(sizes, keys)}",
        keys,
        {
            OURS: forward_only(lambda: run("sparse")),
            ENTROPY: forward_only(lambda: run("sparse", OWN)),
            BLEND: forward_only(lambda: run("dense")),
            FULL: forward_only(lambda: full(x, context)),
        },
        lambda: close(forward_only(lambda: run("sparse"))(), forward_only(lambda: run("dense"))()),
        at_most,
        {
            OURS: forward_only(lambda: planned(HALF)),
            ENTROPY: forward_only(lambda: planned(OWN)),
            FULL: lambda: full.mixer.flops([Work.expected(B, T)]).total,
        },
    )
