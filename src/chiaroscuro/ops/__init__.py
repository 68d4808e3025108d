"""Pure functions on tensors: transforms, entropy, kernels, convolution, attention of chosen queries. Torch only.

Backward passes may be differentiated again, except through attention; no torch.func.vmap and no forward-mode
derivatives, since kernels write into memory that is made beforehand.
"""

from chiaroscuro.ops.attention import chosen_attention, packed_attention
from chiaroscuro.ops.checks import NotFinite
from chiaroscuro.ops.chosen import Chosen
from chiaroscuro.ops.convolution import short_convolution
from chiaroscuro.ops.dct import dct, filtered_idct, idct, packed_dct
from chiaroscuro.ops.entropy import noise_deviation, noise_entropy, packed_dct_and_entropy, spectral_entropy
from chiaroscuro.ops.rbf import median_bandwidth, random_frequencies, rbf_feature_mix, rbf_features, rbf_kernel, rbf_mix
from chiaroscuro.ops.rope import rotary_tables, rotate
from chiaroscuro.ops.window import window_attention

__all__ = [
    "Chosen",
    "NotFinite",
    "chosen_attention",
    "dct",
    "filtered_idct",
    "idct",
    "median_bandwidth",
    "noise_deviation",
    "noise_entropy",
    "packed_attention",
    "packed_dct",
    "packed_dct_and_entropy",
    "random_frequencies",
    "rbf_feature_mix",
    "rbf_features",
    "rbf_kernel",
    "rbf_mix",
    "rotary_tables",
    "rotate",
    "short_convolution",
    "spectral_entropy",
    "window_attention",
]
