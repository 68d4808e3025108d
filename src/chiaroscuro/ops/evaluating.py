"""A model in evaluation mode, or not compiled, for as long as something is measured."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn


def hooks_heard() -> AbstractContextManager[None]:
    """While it lasts, compiled models are run as they were written: a hook that comes after compilation is not heard
    otherwise."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


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
