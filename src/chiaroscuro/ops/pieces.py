"""Taking many vectors some at a time, so that all passes over them but the first find them in the cache."""

from collections.abc import Iterator

from torch import Tensor

AT_A_TIME = 2**19  # numbers


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Corresponding blocks of rows of tensors (..., any) of the same leading shape, small enough that one of the first
    stays in the CPU's cache; all rows in one block on other devices. No block is empty."""
    rows = [x.view(-1, x.shape[-1]) for x in tensors]
    if len(rows[0]):
        yield from zip(*(x.split(_number(tensors[0])) for x in rows), strict=True)


def room(x: Tensor, size: int) -> Tensor:
    """Memory for `size` numbers per row of a piece of x, for `rows` to give out; memory that is new for each piece is
    slower to write to."""
    return x.new_empty(min(_number(x), x.numel() // x.shape[-1]) * size)


def rows(room: Tensor, n: int, size: int) -> Tensor:
    """(n, size), at the start of a room."""
    return room[: n * size].view(n, size)


def _number(x: Tensor) -> int:
    return max(1, AT_A_TIME // x.shape[-1] if x.device.type == "cpu" else x.numel() // x.shape[-1])
