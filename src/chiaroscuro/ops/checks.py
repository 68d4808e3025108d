"""Input checks shared by the operators."""

import math

import torch
from torch import Tensor


class NotFinite(ValueError):
    """An operator was given NaN or infinity."""


def require_finite(name: str, *tensors: Tensor) -> None:
    """Raise NotFinite, a ValueError, when a CPU tensor holds NaN or infinity, naming the operator it is of.

    The sum is tested first because it reads each tensor once and allocates nothing; only when it is not finite, which a
    sum of large finite numbers may also be, are the entries looked at. On an accelerator the check is left out: it
    would stall the stream in the middle of a layer.
    """
    if torch.compiler.is_compiling():
        return
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return
        if not math.isfinite(tensor.sum().item()) and not torch.isfinite(tensor).all():
            raise NotFinite(f"{name}: NaN or infinity came in; look for the step before it that diverged")
