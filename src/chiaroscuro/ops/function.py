"""Operators with a backward pass of their own."""

from typing import Any

import torch
from torch import Tensor


class Function(torch.autograd.Function):
    """`run` instead of `apply`: where no gradient is wanted it is the forward pass alone. Calling `apply` takes longer
    than the whole operator does on the single token of a step of generation."""

    @classmethod
    def run(cls, *args: Any) -> Any:
        wanted = torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
        return cls.apply(*args) if wanted else cls.forward(*args)
