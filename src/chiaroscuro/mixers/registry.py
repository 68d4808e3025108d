"""Classes by the names that configurations call them by."""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """The classes of a kind, such as "operator", each under a name."""

    def __init__(self, kind: str):
        self.kind = kind
        self._known: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator. Raises ValueError when the name is taken by another class; one that was defined anew, as by
        a cell that is run again, takes the place of itself."""

        def register(cls: C) -> C:
            known = self._known.setdefault(name, cls)
            if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                taken = f"{known.__module__}.{known.__qualname__}"
                raise ValueError(f"{self.kind} {name!r} is already registered, by {taken}")
            self._known[name] = cls
            return cls

        return register

    def names(self) -> list[str]:
        return sorted(self._known)

    def __getitem__(self, name: str) -> type[T]:
        """Raises ValueError listing the known names."""
        if name not in self._known:
            raise ValueError(f"unknown {self.kind} {name!r}; known {self.kind}s: {', '.join(self.names())}")
        return self._known[name]
