"""Encoded text on disk, memory-mapped, and windows of it.

Shapes: T tokens of a window.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from chiaroscuro.data.corpus import Corpus
from chiaroscuro.data.tokenizer import pieces


def cache_folder() -> Path:
    """Where encoded corpora are kept: $CHIAROSCURO_CACHE, or ~/.cache/chiaroscuro."""
    return Path(os.environ.get("CHIAROSCURO_CACHE", Path.home() / ".cache" / "chiaroscuro"))


def encode(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> dict[str, np.ndarray]:
    """The token ids of each split as a memory-mapped array, each document followed by the end-of-text token.

    They are encoded once and found again by a hash of the text and the tokenizer. Raises ValueError for a split
    without documents, and for a tokenizer without an end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token to put behind each document: set its eos_token")
    empty = next((split for split, documents in corpus.splits.items() if not len(documents)), None)
    if empty is not None:
        raise ValueError(f"{corpus.name} has nothing for the {empty} split: give more text")
    return {split: _encoded(documents, tokenizer) for split, documents in corpus.splits.items()}


def _encoded(documents: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    whole = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    whole.no_truncation()  # which a tokenizer remembers from its last use, and its file too
    whole.no_padding()
    digest = hashlib.sha256(whole.to_str().encode())
    digest.update(tokenizer.eos_token_id.to_bytes(8, "little"))  # of several in a tokenizer's file, one ends documents
    for document in documents:
        digest.update(len(document).to_bytes(8, "little"))
        digest.update(document.encode())
    return cached_array(digest.hexdigest(), lambda: _ids(documents, whole, tokenizer.eos_token_id))


def cached_array(key: str, make: Callable[[], Iterator[np.ndarray]]) -> np.ndarray:
    """The arrays that `make` yields, one behind the other, memory-mapped; made once for each `key`, and never all of
    them in memory. Raises OSError when they cannot be written, and ValueError for a file that is damaged."""
    path = cache_folder() / f"{key[:32]}.npy"
    if not path.exists():
        _write_whole(path, make())
    try:
        return np.load(path, mmap_mode="r")
    except (EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and it is made again") from error


def _write_whole(path: Path, arrays: Iterator[np.ndarray]) -> None:
    """Under a name of its own until it is whole: another process may be looking for the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        with draft.open("xb") as file:
            _write_array(file, arrays)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(f"{path} cannot be written ({error}); CHIAROSCURO_CACHE names another folder") from error
        raise
    draft.replace(path)


def _write_array(file: BinaryIO, arrays: Iterator[np.ndarray]) -> None:
    """In NumPy's format, whose header has room for a length that is known only at the end."""
    first = next(arrays)

    def write_header(length: int) -> None:
        descr = np.lib.format.dtype_to_descr(first.dtype)
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": (length,)})

    write_header(0)
    length = 0
    for array in chain([first], arrays):
        file.write(array.tobytes())
        length += len(array)
    file.seek(0)
    write_header(length)


def _ids(documents: Sequence[str], tokenizer: Tokenizer, end: int) -> Iterator[np.ndarray]:
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    for document in documents:
        for piece in pieces(document):
            yield np.array(tokenizer.encode(piece, add_special_tokens=False).ids, dtype=dtype)
        yield np.array([end], dtype=dtype)


Sample = tuple[Tensor, Tensor | None]  # tokens (B, T), and the mask that tells padding where rows are of unlike lengths


class Windows(Dataset[dict[str, Tensor]], ABC):
    """Sequences of `length` tokens each, with labels. stored: what they are cut from."""

    stored: np.ndarray
    length: int

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    def batch(self, indices: range) -> Tensor:
        """The tokens of the sequences at `indices`, as far as there are so many, (B, T)."""
        return torch.stack([self[index]["input_ids"] for index in indices if index < len(self)])

    def spread(self, count: int) -> Tensor:
        """The tokens of `count` sequences at even distances, or of all, (B, T)."""
        count = min(count, len(self))
        return torch.stack([self[index * len(self) // count]["input_ids"] for index in range(count)])


class TokenWindows(Windows):
    """Windows of T tokens, each beginning with the last token of the one before, so that every token but the first of
    the text is predicted exactly once, up to the end of the last whole window. With `count`, at most that many of them,
    spread evenly over the text. stored: the tokens of the text.

    Raises ValueError when the text does not fill one window.
    """

    def __init__(self, tokens: np.ndarray, length: int, count: int | None = None):
        if length < 2:
            raise ValueError(f"a window needs at least two tokens, got {length}")
        if len(tokens) < length:
            raise ValueError(
                f"the text has {len(tokens)} tokens, fewer than one window of {length}: give more text or a "
                "smaller --seq-len"
            )
        self.stored = tokens
        self.length = length
        self.available = (len(tokens) - 1) // (length - 1)
        self.count = self.available if count is None else min(count, self.available)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"window {index} of {self.count}")
        start = index * self.available // self.count * (self.length - 1)
        ids = torch.from_numpy(self.stored[start : start + self.length].astype(np.int64))
        return {"input_ids": ids, "labels": ids}
