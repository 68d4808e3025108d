"""Byte-level BPE tokenizers: trained here, or read from a folder."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BatchEncoding, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
PIECE = 1_000_000  # characters
# No token of GPT-2's kind lies on both sides of a place where white space begins. (One of others may, which puts a full
# stop and a line's end into one.)
_BEFORE_SPACE = re.compile(r"(?<=\S)(?=[ \n])")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with `vocab_size` entries, the 256 bytes and the end-of-text token included.

    The result depends on the texts alone. Raises ValueError when `vocab_size` has no room for the bytes.
    """
    if vocab_size < 257:
        raise ValueError(f"a byte-level vocabulary needs at least 257 entries, got {vocab_size}")
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
    return wrap(tokenizer)


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """`text` in pieces of `size` characters (1 at least) and a word, whose tokens are those of the whole. The library
    takes 140 times the memory of a text that it is given at once."""
    start = 0
    while start < len(text):
        end = _BEFORE_SPACE.search(text, start + size)
        yield text[start : end.start() if end else None]
        start = end.start() if end else len(text)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder`: `tokenizer.json`, or `vocab.json` and `merges.txt` as GPT-2's is published.

    Raises ValueError when neither is there, the file cannot be read, or its ids are not those from 0 on.
    """
    saved = folder / "tokenizer.json"
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    try:
        if saved.is_file():
            tokenizer = Tokenizer.from_file(str(saved))
        elif vocabulary.is_file() and merges.is_file():
            tokenizer = _gpt2(vocabulary, merges)
        else:
            raise FileNotFoundError
    except FileNotFoundError as error:
        raise ValueError(f"no tokenizer in {folder}: expected tokenizer.json, or vocab.json and merges.txt") from error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception for what it cannot parse, and may panic
        raise ValueError(f"the tokenizer in {folder} cannot be read: {error}") from error
    # Before it is wrapped: what lies between two ids far apart would be filled.
    if sorted(tokenizer.get_vocab().values()) != list(range(tokenizer.get_vocab_size())):
        raise ValueError(f"the tokenizer in {folder} cannot be used: its ids are not those from 0 to its size")
    return wrap(tokenizer)


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str, **kwargs: Any) -> BatchEncoding:
    """What `tokenizer` makes of `text`. Raises ValueError for text that is none: a character that stands for a byte
    which is not UTF-8."""
    text.encode()
    return tokenizer(text, **kwargs)


def symbol_tokenizer(symbols: Sequence[str]) -> PreTrainedTokenizerFast:
    """One id for each symbol, in their order, and then that of the end of a text; symbols are parted by spaces."""
    vocabulary = {symbol: index for index, symbol in enumerate((*symbols, END_OF_TEXT))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=END_OF_TEXT))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrap(tokenizer)


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _gpt2(vocabulary: Path, merges: Path) -> Tokenizer:
    tokenizer = _byte_level(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> np.ndarray | None:
    """Bytes of text behind each token id, 0 for special tokens; None where the vocabulary is not byte-level, the names
    of which have a character for each byte."""
    if "ByteLevel(" not in repr(tokenizer.backend_tokenizer.decoder):  # which may be one of a sequence
        return None
    sizes = np.array([len(name) for name in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))])
    for index, added in tokenizer.backend_tokenizer.get_added_tokens_decoder().items():
        sizes[index] = 0 if added.special else len(added.content.encode())  # which stands in the text as it is named
    sizes[tokenizer.all_special_ids] = 0
    return sizes


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
