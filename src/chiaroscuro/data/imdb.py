"""IMDB movie reviews (Maas et al., 2011), as sentences to classify and as text to model.

Read from a folder of JSON lines, `train.jsonl` and `test.jsonl`, optionally `unsupervised.jsonl`, each possibly
ending in `.gz`: an object per line with `text` and, but for the last file, `label` (0 negative, 1 positive).
"""

import gzip
import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

from chiaroscuro.data.hub import from_hub

HELD_OUT = 0.1  # of the training reviews, for validation
MOST_EXPANSION = 30  # of a compressed file; English shrinks to a third


@dataclass(frozen=True)
class Reviews:
    """Texts and labels of each split."""

    texts: dict[str, list[str]]
    labels: dict[str, list[int]]


def load_imdb(source: str) -> Reviews:
    """Reviews from a folder, or from the hub for the name "imdb". The test split is the published one; a tenth of the
    training reviews, chosen by a hash of the text, is held out for validation.

    Raises ValueError for a missing or damaged file, and when the hub cannot be reached.
    """
    labelled = (
        _from_hub("train", "test")
        if source == "imdb"
        else {name: _read(Path(source), name) for name in ("train", "test")}
    )
    splits: dict[str, list[tuple[str, int]]] = {"train": [], "validation": [], "test": []}
    for name, reviews in labelled.items():
        for text, label in reviews:
            if label not in (0, 1):
                raise ValueError(f"a review in the {name} split of {source} has the label {label!r}; expected 0 or 1")
            splits[name if name == "test" else _part(text)].append((text, label))
    return Reviews(
        {name: [text for text, _ in reviews] for name, reviews in splits.items()},
        {name: [int(label) for _, label in reviews] for name, reviews in splits.items()},
    )


def imdb_texts(source: str) -> dict[str, list[str]]:
    """The reviews of a folder, or of the hub for the name "imdb", as documents to model: labelled and unlabelled ones
    to train on, a tenth of the labelled ones for validation."""
    if source == "imdb":
        reviews = _from_hub("train", "test", "unsupervised")
    else:
        extra = ["unsupervised"] if _find(Path(source), "unsupervised") is not None else []
        reviews = {name: _read(Path(source), name) for name in ("train", "test", *extra)}
    documents: dict[str, list[str]] = {"train": [], "validation": [], "test": [text for text, _ in reviews["test"]]}
    for text, _ in reviews["train"]:
        documents[_part(text)].append(text)
    documents["train"] += [text for text, _ in reviews.get("unsupervised", [])]
    return documents


def _part(text: str) -> str:
    return "validation" if hashlib.sha256(text.encode()).digest()[0] < 256 * HELD_OUT else "train"


def _find(folder: Path, name: str) -> Path | None:
    return next((path for end in (".jsonl", ".jsonl.gz") if (path := folder / f"{name}{end}").is_file()), None)


def _read(folder: Path, name: str) -> list[tuple[str, int | None]]:
    path = _find(folder, name)
    if path is None:
        raise ValueError(f"no reviews in {folder}: {name}.jsonl or {name}.jsonl.gz is missing")
    try:
        lines = [json.loads(line) for line in _content(path).splitlines() if line.strip()]
        reviews = [(line["text"], line.get("label")) for line in lines]
        for number, (text, _) in enumerate(reviews, 1):
            text.encode()  # half of a surrogate pair cannot be
            if not text.strip():
                raise ValueError(f"review {number} is empty")
        return reviews
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or holds no reviews ({error})") from error


def _content(path: Path) -> bytes:
    """Of a file that is possibly compressed. Raises ValueError when it grows as no text does."""
    if path.suffix != ".gz":
        return path.read_bytes()
    most = max(2**20, MOST_EXPANSION * path.stat().st_size)
    with gzip.open(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it expands to more than {MOST_EXPANSION} times its size")
    return content


def _from_hub(*splits: str) -> dict[str, list[tuple[str, int | None]]]:
    loaded = from_hub(
        "stanfordnlp/imdb", None, "a folder with train.jsonl and test.jsonl (--data FOLDER, --mix imdb=FOLDER)"
    )
    return {name: list(zip(loaded[name]["text"], loaded[name]["label"], strict=True)) for name in splits}
