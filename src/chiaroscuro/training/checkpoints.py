"""Checkpoints that are whole or not there.

One is written under another name, gets the sums of its files, reaches the disk, and only then takes its name. What a
kill, a full disk or a bad sector leaves is told by its sums and passed over.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from chiaroscuro.modeling import read_json

PREFIX = f"{PREFIX_CHECKPOINT_DIR}-"  # by which the Trainer names what it writes
SUMS, DRAFTS = "sums.json", "drafts"
KEPT = 2


def steps_of(checkpoint: Path) -> int:
    """The steps after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def settle(folder: Path, step: int) -> None:
    """Make a checkpoint of what was written into `folder / DRAFTS`, and remove all but the last `KEPT` up to it: those
    of later steps are damaged, or training would have gone on from them."""
    draft = folder / DRAFTS / f"{PREFIX}{step}"
    (draft / SUMS).write_text(json.dumps(_sums(draft), indent=2))
    for path in [*draft.rglob("*"), draft]:
        _reach_the_disk(path)
    place = folder / draft.name
    shutil.rmtree(place, ignore_errors=True)  # one of the same step that turned out to be damaged
    os.rename(draft, place)
    _reach_the_disk(folder)
    discard_drafts(folder)
    found = _newest_first(folder)
    kept = [checkpoint for checkpoint in found if steps_of(checkpoint) <= step][:KEPT]
    for checkpoint in found:
        if checkpoint not in kept:
            shutil.rmtree(checkpoint)


def discard_drafts(folder: Path) -> None:
    shutil.rmtree(folder / DRAFTS, ignore_errors=True)


def last_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is as it was written, if any, and what is wrong with each newer one."""
    complaints: list[str] = []
    for checkpoint in _newest_first(folder):
        fault = _fault(checkpoint)
        if fault is None:
            return checkpoint, complaints
        complaints.append(f"{checkpoint} is damaged: {fault}")
    return None, complaints


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=steps_of, reverse=True)


def _sums(checkpoint: Path) -> dict[str, str]:
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != SUMS]
    return {str(path.relative_to(checkpoint)): _sum(path) for path in files}


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fault(checkpoint: Path) -> str | None:
    try:
        written = read_json(checkpoint / SUMS)
    except ValueError:
        return f"{SUMS} is missing or not whole"
    found = _sums(checkpoint)
    missing = sorted(set(written) - set(found))
    if missing:
        return f"{', '.join(missing)} missing"
    changed = [name for name in written if written[name] != found[name]]
    return f"{', '.join(changed)} changed since written" if changed else None


def _reach_the_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
