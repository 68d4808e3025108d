"""Attributes that are computed when first asked for."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

V = TypeVar("V")


class once(Generic[V]):  # noqa: N801, used as a decorator
    """As functools.cached_property, without the lock at which torch.compile breaks its graph in Python 3.11."""

    def __init__(self, compute: Callable[[Any], V]):
        self.compute = compute
        self.__doc__ = compute.__doc__

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        value = self.compute(instance)
        instance.__dict__[self.compute.__name__] = value
        return value
