"""What there is to run kernels of our own on an accelerator."""

from functools import cache
from importlib.util import find_spec


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None
