"""The kernels for GPUs of `chiaroscuro.ops.spectral_triton` as operators of torch, for those who count FLOPs.

Shapes: M tokens, D channels, P slots of a packed spectrum (`chiaroscuro.ops.dct`).
"""

import torch
from torch import Tensor


@torch.library.custom_op("chiaroscuro::fused_spectrum", mutates_args=(), device_types="cuda")
def fused_spectrum(x_MD: Tensor, matrix_DP: Tensor, dc_weight: float) -> tuple[Tensor, Tensor]:
    """Packed spectra (M, P) and entropies (M,), in float32."""
    from chiaroscuro.ops import spectral_triton

    return spectral_triton.spectrum(x_MD, matrix_DP, dc_weight)


@torch.library.custom_op("chiaroscuro::fused_inverse", mutates_args=(), device_types="cuda")
def fused_inverse(X_MP: Tensor, matrix_DP: Tensor, w_P: Tensor | None, chosen_M: Tensor | None) -> Tensor:
    """Vectors (M, D) in float32, each slot of their packed spectra multiplied by its weight: of all rows of X, or of
    those that `chosen_M` lists."""
    from chiaroscuro.ops import spectral_triton

    return spectral_triton.inverse(X_MP, matrix_DP, w_P, chosen_M)
