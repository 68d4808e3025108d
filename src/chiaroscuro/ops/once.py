"""Attributes that are computed when first asked for."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

V = TypeVar("V")


class once(Generic[V]):  # noqa: N801, used as a decorator
    """As functools.cached_property, without the lock at which torch.compile breaks its graph in Python 3.11."""

    def __init__(self, compute: Callable[[Any], V]):
        self.compute = compute

    def __get__(self, instance: Any, owner: type) -> V:
        value = self.compute(instance)
        instance.__dict__[self.compute.__name__] = value
        return value
