"""What a run folder says of the program that made it, and its metrics."""

import json
import subprocess
import sys

import pytest

from chiaroscuro.training.folder import commit_of, cut_metrics, versions


def test_the_commit_is_marked_when_the_source_was_changed_and_not_when_results_were_written(tmp_path):
    def git(*arguments: str) -> None:
        author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *author, *arguments], check=True, capture_output=True)

    source = tmp_path / "source"
    source.mkdir()
    assert commit_of(source) == "unknown"
    (source / "code.py").write_text("a")
    (tmp_path / "results.json").write_text("{}")
    git("init")
    git("add", "results.json")
    git("commit", "-m", "of another project")
    assert commit_of(source) == "unknown"
    git("add", ".")
    git("commit", "-m", "first")
    clean = commit_of(source)
    assert len(clean) == 12
    (tmp_path / "results.json").write_text("[]")
    assert commit_of(source) == clean
    (source / "more.py").write_text("b")
    assert commit_of(source) == f"{clean}-dirty"


@pytest.mark.parametrize(
    ("file", "called", "recorded"),
    [
        ("/bin/chiaroscuro", ["/bin/chiaroscuro"], "chiaroscuro 'a b'"),
        ("/lib/chiaroscuro/__main__.py", ["-m", "chiaroscuro"], "chiaroscuro 'a b'"),
        ("/lib/chiaroscuro/studies/worker.py", ["-m", "chiaroscuro.studies.worker"], "python -m chiaroscuro.studies.w"),
        ("chiaroscuro/mine.py", ["-u", "chiaroscuro/mine.py"], "python -u chiaroscuro/mine.py 'a b'"),
    ],
)
def test_the_command_is_what_was_called(monkeypatch, file, called, recorded):
    monkeypatch.setattr(sys, "argv", [file, "a b"])
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python", *called, "a b"])
    assert versions()["command"].startswith(recorded)


def test_metrics_are_cut_back_to_a_step_and_to_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0 / step}) + "\n" for step in range(1, 6)]
    path.write_text("".join(lines) + '{"step": 6, "lo')
    cut_metrics(path, 9)
    assert path.read_text() == "".join(lines)
    cut_metrics(path, 3)
    assert path.read_text() == "".join(lines[:3])
    cut_metrics(path, 0)
    assert path.read_text() == ""
    cut_metrics(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()
