"""The run folder: what a finished run leaves behind, and reading it back.

`config.json`, `model.safetensors`, the tokenizer, `plan.json` (what the run was told), `data.json` (hashes of
what it was trained and measured on), `metrics.jsonl` (one log per line) and `results.json`.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock, Timeout
from transformers import PreTrainedTokenizerFast

import chiaroscuro
from chiaroscuro.data import load_tokenizer
from chiaroscuro.modeling import (
    ChiarForCausalLM,
    ChiarForSequenceClassification,
    class_of,
    load_config,
    load_model,
    read_json,
)

RESULTS = "results.json"
METRICS = "metrics.jsonl"
COMPARISON = "comparison.json"  # beside the runs that `compare` trained
PLAN = "plan.json"
DATA = "data.json"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Run:
    """A trained model with its tokenizer and what is known about it."""

    folder: Path
    model: ChiarForCausalLM | ChiarForSequenceClassification
    tokenizer: PreTrainedTokenizerFast
    results: dict[str, Any]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """A lock on `folder` against other processes. Raises ValueError when one of them holds it."""
    place = folder.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.parent / f".{place.name}.lock")  # not in the folder, which may be published as it is
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"another process is at work in {folder}: wait for it, or choose another --out") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def new_run_folder(folder: Path) -> Path:
    """Make `folder`. Raises ValueError when something is in it already: a run is never overwritten, but for what a run
    that stopped before its first checkpoint left of itself."""
    if folder.is_dir() and _holds_a_start_only(folder):
        shutil.rmtree(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already: choose another --out, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _holds_a_start_only(folder: Path) -> bool:
    """Whether nothing but the plan and the logs of a run is there."""
    files = {path for path in folder.rglob("*") if not path.is_dir()}
    own = {name: {folder / name, _draft_of(folder / name)} for name in (PLAN, DATA, METRICS)}
    return bool(files & own[PLAN]) and files <= set().union(*own.values())


def load_run(folder: Path) -> Run:
    """Read a run folder. Raises ValueError naming the file that is missing or damaged."""
    if not folder.is_dir():
        raise ValueError(f"no run folder at {folder}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a run folder: config.json is missing")
    config = load_config(folder)
    try:
        cls = class_of(config)
    except ValueError as error:
        raise ValueError(f"{folder} is not a run folder: {error}") from error
    model: Any = load_model(cls, folder, config)
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"{folder}: the tokenizer has {len(tokenizer)} entries and the model {config.vocab_size}")
    results = read_json(folder / RESULTS) if (folder / RESULTS).exists() else {}
    return Run(folder, model, tokenizer, results)


def changed_data(digests: dict[str, str], folder: Path) -> list[str]:
    """The parts of the data, by their hashes now, that are not those of the run in `folder`, as far as it knows."""
    known = read_json(folder / DATA) if (folder / DATA).exists() else {}
    return [part for part, digest in digests.items() if known.get(part, digest) != digest]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write to a temporary name and rename, so that a reader never sees half a file."""
    _replace(path, json.dumps(content, indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    _draft_of(path).write_text(text)
    os.replace(_draft_of(path), path)


def _draft_of(path: Path) -> Path:
    return path.with_suffix(".tmp")


def cut_metrics(path: Path, step: int) -> None:
    """Take out of a file of metrics what was logged after `step`, and a last line that is not whole. Raises ValueError
    when another line is damaged."""
    if not path.exists():
        return
    kept: list[str] = []
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        try:
            logged = json.loads(line)["step"]
        except (ValueError, RecursionError, LookupError, TypeError) as error:
            raise ValueError(f"line {len(kept) + 1} of {path} is damaged ({error})") from error
        if logged > step:
            break
        kept.append(line)
    _replace(path, "".join(kept))


def seconds_trained(metrics: Path) -> float | None:
    """How long a run was trained for until its last log, None where no log says it."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    seconds: float | None = json.loads(lines[-1]).get("seconds") if lines else None
    return seconds


def versions() -> dict[str, str]:
    """What the numbers of a run depend on, and the command that made it."""
    return {
        "chiaroscuro": chiaroscuro.__version__,
        "commit": commit_of(Path(__file__).parent.parent),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": f"{_processor()}, {torch.get_num_threads()} threads",
        "command": shlex.join([*_program(), *sys.argv[1:]]),
    }


def _program() -> list[str]:
    """What was called: the command, another module of the package, which it starts as a process, or a program of the
    user's own."""
    called = Path(sys.argv[0])
    if called.stem == "chiaroscuro" or called.parts[-2:] == ("chiaroscuro", "__main__.py"):
        return ["chiaroscuro"]
    return ["python", *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]]


def commit_of(source: Path) -> str:
    """The commit that the folder `source` is at, with "-dirty" when something in it was changed since (results that are
    written beside it do not count); "unknown" outside a checkout, and in that of another project."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not git("ls-files", "."):
            return "unknown"
        return git("describe", "--always", "--abbrev=12") + ("-dirty" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
