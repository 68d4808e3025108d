"""What an accelerator has: kernels of our own, double precision, autocast, TF32."""

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch


@cache
def has_triton() -> bool:
    """Whether kernels of our own are used on GPUs; not so with CHIAROSCURO_TRITON=0 in the environment."""
    return os.environ.get("CHIAROSCURO_TRITON") != "0" and find_spec("triton") is not None


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """While it lasts, no operation on a device is put into half precision, whoever asked for it."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def rounds_to_tf32(device: torch.device) -> bool:
    """Whether products of float32 numbers on a device are computed with the digits of TF32."""
    own, of_all = torch.backends.cuda.matmul.fp32_precision, torch.backends.fp32_precision  # type: ignore[attr-defined]
    return device.type == "cuda" and (of_all if own == "none" else own) == "tf32"


def most_precise(device: torch.device) -> torch.dtype:
    """The floating-point numbers with the most digits that a device knows; Apple's GPUs know no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
