"""What a run folder says of the program that made it."""

import subprocess

from chiaroscuro.training.folder import commit_of


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
    git("add", ".")
    git("commit", "-m", "first")
    clean = commit_of(source)
    assert len(clean) == 12
    (tmp_path / "results.json").write_text("[]")
    assert commit_of(source) == clean
    (source / "more.py").write_text("b")
    assert commit_of(source) == f"{clean}-dirty"
