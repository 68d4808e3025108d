"""What an accelerator has: kernels of our own, double precision."""

from functools import cache
from importlib.util import find_spec

import torch


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None


def most_precise(device: torch.device) -> torch.dtype:
    """The floating-point numbers with the most digits that a device knows; Apple's GPUs know no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
