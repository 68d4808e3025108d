"""A model in evaluation mode, or not compiled, for as long as something is measured."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


def uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """While it lasts, a model that is compiled, as a whole or in part, is run as it was written: a hook that comes
    after compilation is not heard otherwise. Any other is left alone, as transformers' flex attention, which compiles
    itself, takes much memory as it is written."""
    return torch.compiler.set_stance("force_eager") if any(map(_is_compiled, model.modules())) else nullcontext()


def _is_compiled(part: nn.Module) -> bool:
    """By torch.compile of the module, by its own `compile`, or by torch.compile of its forward method."""
    in_place = part._compiled_call_impl is not None or hasattr(part.forward, "_torchdynamo_orig_callable")
    return in_place or hasattr(part, "_orig_mod")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While it lasts, `model` is in evaluation mode and nothing is recorded for gradients; then each of its modules is
    in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training
