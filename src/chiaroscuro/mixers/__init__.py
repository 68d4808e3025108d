"""The operators a token can be routed to, one nn.Module each, behind one interface; importing this registers them."""

from chiaroscuro.mixers.attention import AttentionMixer
from chiaroscuro.mixers.base import NO_CONTEXT, Context, Mixer, mixer_class, operator_names, register_mixer
from chiaroscuro.mixers.controls import IdentityMixer, LinearMixer, NothingMixer
from chiaroscuro.mixers.convolution import ShortConvolution
from chiaroscuro.mixers.dct import DCTMixer
from chiaroscuro.mixers.feed_forward import FeedForward
from chiaroscuro.mixers.flops import Flops, Work
from chiaroscuro.mixers.rbf import RBFMixer
from chiaroscuro.mixers.window import WindowMixer

__all__ = [
    "NO_CONTEXT",
    "AttentionMixer",
    "Context",
    "DCTMixer",
    "FeedForward",
    "Flops",
    "IdentityMixer",
    "LinearMixer",
    "Mixer",
    "NothingMixer",
    "RBFMixer",
    "ShortConvolution",
    "WindowMixer",
    "Work",
    "mixer_class",
    "operator_names",
    "register_mixer",
]
