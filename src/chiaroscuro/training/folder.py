"""The run folder: what a finished run leaves behind, and reading it back.

`config.json`, `model.safetensors`, the tokenizer, `plan.json` (what the run was told), `metrics.jsonl` (one log per
line) and `results.json`.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast

import chiaroscuro
from chiaroscuro.data import load_tokenizer
from chiaroscuro.modeling import ChiarForCausalLM, ChiarForMixedTasks, ChiarForSequenceClassification

RESULTS, METRICS, PLAN, CHECKPOINTS = "results.json", "metrics.jsonl", "plan.json", "checkpoints"


@dataclass(frozen=True)
class Run:
    """A trained model with its tokenizer and what is known about it."""

    folder: Path
    model: ChiarForCausalLM | ChiarForSequenceClassification
    tokenizer: PreTrainedTokenizerFast
    results: dict[str, Any]


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
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    return folder / PLAN in files and set(files) <= {folder / PLAN, folder / METRICS}


def load_run(folder: Path) -> Run:
    """Read a run folder. Raises ValueError naming the file that is missing or damaged."""
    if not folder.is_dir():
        raise ValueError(f"no run folder at {folder}")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a run folder: {name} is missing")
    architectures = read_json(folder / "config.json").get("architectures") or ["ChiarForCausalLM"]
    known = {cls.__name__: cls for cls in (ChiarForCausalLM, ChiarForMixedTasks, ChiarForSequenceClassification)}
    if architectures[0] not in known:
        raise ValueError(f"{folder} holds a {architectures[0]}; known models: {', '.join(known)}")
    try:
        model = known[architectures[0]].from_pretrained(folder, local_files_only=True).eval()
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{folder / 'model.safetensors'} is damaged ({error}): train again or restore it") from error
    results = read_json(folder / RESULTS) if (folder / RESULTS).exists() else {}
    return Run(folder, model, load_tokenizer(folder), results)


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError when the file is missing or not a JSON object."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it or train again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write to a temporary name and rename, so that a reader never sees half a file."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def cut_metrics(path: Path, step: int) -> None:
    """Take out of a file of metrics what was logged after `step`, and a last line that is not whole."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


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
    """What was called: the command, or a module of the package that it starts as a process."""
    module = sys.orig_argv[1:3]
    return ["python", *module] if module[:1] == ["-m"] and module[1:] != ["chiaroscuro"] else ["chiaroscuro"]


def commit_of(source: Path) -> str:
    """The commit that the folder `source` is at, with "-dirty" when something in it was changed since (results that are
    written beside it do not count); "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
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
