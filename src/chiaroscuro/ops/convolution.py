"""Short causal convolution of each channel over tokens (as before the mixers of H3, Fu et al., arXiv 2212.14052).

Shapes: B batch, T tokens, D channels, W taps, E = W - 1 tokens before the first.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from chiaroscuro.ops.accelerator import without_autocast
from chiaroscuro.ops.function import Function


def short_convolution(x_BTD: Tensor, weight_WD: Tensor, before_BED: Tensor | None = None) -> Tensor:
    """y_t = sum_w weight_w * x_{t-w} for w = 0 ... W - 1, elementwise, (B, T, D) in the dtype of x.

    before_BED: the tokens before the first; None: zeros. Raises ValueError when they are not W - 1, when there is no
    token or no tap, and when the taps are of another number of channels.
    """
    if not x_BTD.numel() or not len(weight_WD) or weight_WD.shape[1] != x_BTD.shape[2]:
        raise ValueError(
            f"short_convolution: taps of shape {tuple(weight_WD.shape)} for tokens of shape {tuple(x_BTD.shape)}; both "
            "must be there, with the same number of channels last"
        )
    W, weight_WD = len(weight_WD), weight_WD.to(x_BTD.dtype)
    if before_BED is None:
        return _Convolution.run(x_BTD, weight_WD)
    if before_BED.shape[1] != W - 1:
        raise ValueError(f"short_convolution: {W} taps need {W - 1} tokens before the first, got {before_BED.shape[1]}")
    x_BTD = torch.cat((before_BED.to(x_BTD.dtype), x_BTD), dim=1)
    if x_BTD.shape[1] == W:  # a step of generation, for which a convolution takes ten times as long
        return (x_BTD * weight_WD.flip(0)).sum(1, keepdim=True)
    return _Convolution.run(x_BTD, weight_WD)[:, W - 1 :]


class _Convolution(Function):
    """With a backward pass of its own: torch's for the weights of such a convolution takes several times as long on the
    CPU."""

    @staticmethod
    def forward(x_BTD: Tensor, weight_WD: Tensor) -> Tensor:
        return _padded(x_BTD, weight_WD.flip(0))[:, : x_BTD.shape[1]]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x_BTD, weight_WD = ctx.saved_tensors
        W, T = len(weight_WD), x_BTD.shape[1]
        of_taps = [(gradient[:, w:] * x_BTD[:, : max(0, T - w)]).sum((0, 1)) for w in range(W)]
        return _padded(gradient, weight_WD)[:, W - 1 :], torch.stack(of_taps)


def _padded(x_BTD: Tensor, kernel_WD: Tensor) -> Tensor:
    """(B, T + W - 1, D): y_t = sum_w kernel_w * x_{t+w-W+1}, x being zero beyond its ends.

    As a convolution of pictures of one line, channels last: the layout that x has, so that nothing is copied.
    """
    W, D = kernel_WD.shape
    with without_autocast(x_BTD.device):
        picture = x_BTD.transpose(1, 2).unsqueeze(2)
        out = conv2d(picture, kernel_WD.T[:, None, None], padding=(0, W - 1), groups=D)
    return out.squeeze(2).transpose(1, 2)
