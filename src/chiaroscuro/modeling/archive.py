"""Read an archive of `torch.save` that a stranger may have made.

Nothing in it is run: it is read with `weights_only=True`, and only if its pickle calls nothing but what puts tensors
together. With `check_tensors` it fills no more memory than the file is long.
"""

import pickletools
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_CALLED = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Bool")),
}
_IMPORTS = {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}  # of which torch.save writes the first only


class _Suspicious(ValueError):
    """A file holds what no checkpoint needs."""


def load_archive(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU. Raises ValueError for what is no such archive, or holds more than plain
    containers and tensors."""
    try:
        _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except _Suspicious as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from error
    except Exception as error:  # torch raises any for a file that is cut off or refers to what it does not hold
        # Its own text is advice to load what is not trusted all the same.
        cause = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint ({cause})") from error


def _check_archive(path: Path) -> None:
    """Raises _Suspicious when the file is compressed, or when its pickle calls what makes objects of any size."""
    if path.is_file() and not zipfile.is_zipfile(path):
        raise _Suspicious("it was not written by torch.save, or by that of torch before 1.6")
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise _Suspicious("it is compressed")
        for entry in archive.infolist():
            if entry.filename.endswith(".pkl"):
                _check_pickle(archive.read(entry))


def _check_pickle(content: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in _IMPORTS and argument not in _CALLED:
            raise _Suspicious(f"it calls {argument or 'what it names by an expression'}")


def check_tensors(tensors: Iterable[Any], path: Path) -> None:
    """Raises ValueError for what is no tensor or not finite, and when all together are larger than the file `path` that
    they were read from."""
    size = 0
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{path} holds a {type(tensor).__name__} among its tensors")
        size += tensor.numel() * tensor.itemsize
        # Two may be one, as an embedding and the head tied to it; a tensor can also show the same values many times.
        if size > 2 * path.stat().st_size:
            raise ValueError(f"the tensors of {path} are larger than the file")
        if not tensor.isfinite().all():
            raise ValueError(f"{path} holds values that are not finite")
