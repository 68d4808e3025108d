"""Corpora: what is held out, and what is refused."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from chiaroscuro.data import SPLITS, load_corpus, load_other_text

_LIBRARY = Path(sysconfig.get_path("stdlib"))


def test_shakespeare_holds_out_whole_plays_without_markup():
    splits = load_corpus("shakespeare").splits
    assert {name: len(texts) for name, texts in splits.items()} == {"test": 2, "validation": 2, "train": 34}
    every = [text for texts in splits.values() for text in texts]
    assert len(set(every)) == 38
    assert all("*" not in text and "\n#" not in text for text in every)
    assert any("To be, or not to be" in text for text in every)


def test_python_is_the_standard_library_with_whole_modules_held_out():
    splits = load_corpus("python").splits
    modules = {split: {_module(file) for file in files.paths} for split, files in splits.items()}
    assert sum(map(len, modules.values())) == len(set().union(*modules.values())) > 100
    assert set(modules) == set(SPLITS)
    assert min(map(len, modules.values())) > 5
    every = {file.relative_to(_LIBRARY).as_posix() for files in splits.values() for file in files.paths}
    assert {"argparse.py", "asyncio/events.py"} <= every
    assert not any("test" in name.split("/") or "site-packages" in name or "sysconfigdata" in name for name in every)
    assert all(text.strip() for files in splits.values() for text in files)


def _module(file):
    return file.relative_to(_LIBRARY).parts[0].removesuffix(".py")


def test_what_of_a_standard_library_is_left_out_and_one_that_holds_no_files(tmp_path, monkeypatch):
    """A library as others build it, with what belongs to this machine or to other people in it."""
    kept = [f"{name}.py" for name in "abcdef"] + ["package/__init__.py", "package/part.py"]
    left = ["test/test_a.py", "package/tests/test_part.py", "site-packages/other.py", "_sysconfigdata__linux.py"]
    for name in [*kept, *left, "package/empty.py"]:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("" if name.endswith("empty.py") else f"# {name}\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: {"stdlib": str(tmp_path)}[name])
    splits = load_corpus("python").splits
    assert sorted(text for texts in splits.values() for text in texts) == sorted(f"# {name}\n" for name in kept)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "python311.zip"))
    with pytest.raises(ValueError, match="no Python files in .*python311.zip: data 'python' needs a Python whose"):
        load_corpus("python")


def test_a_folder_is_split_by_file(tmp_path):
    for index in range(20):
        (tmp_path / f"{index}.{'TXT' if index % 2 else 'txt'}").write_text(f"document {index}\n")
    splits = load_corpus(str(tmp_path)).splits
    assert {name: len(texts) for name, texts in splits.items()} == {"test": 1, "validation": 1, "train": 18}
    assert len({text for texts in splits.values() for text in texts}) == 20


def test_one_more_file_moves_no_other_between_many_splits(tmp_path):
    for index in range(40):
        (tmp_path / f"{index}.txt").write_text(f"document {index}\n")
    before = load_corpus(str(tmp_path)).splits
    (tmp_path / "new.txt").write_text("another\n")
    after = load_corpus(str(tmp_path)).splits
    moved = set(before["train"]) - set(after["train"])
    assert len(moved) <= 1


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        ("trainset.txt", "validset.txt", "testset.txt"),
        ("IMDBTrain.txt", "IMDBVal.txt", "IMDBTest.txt"),
        ("TRAIN_data.txt", "VALIDATION_data.txt", "TESTS_data.txt"),
    ],
)
def test_files_named_after_splits_are_those_splits(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text(name)
    splits = load_corpus(str(tmp_path)).splits
    found = {split: list(documents) for split, documents in splits.items()}
    assert found == {"train": [names[0]], "validation": [names[1]], "test": [names[2]]}


def test_words_in_names_of_files_and_folders_say_which_split_they_are(tmp_path):
    names = ("train/0.txt", "train/greatest.txt", "Validation/1.txt", "test/2.txt", "test/contrains.txt")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    splits = load_corpus(str(tmp_path)).splits
    found = {split: list(documents) for split, documents in splits.items()}
    assert found == {"train": list(names[:2]), "validation": [names[2]], "test": list(names[3:])}
    (tmp_path / "README.md").write_text("of none")
    with pytest.warns(UserWarning, match="being named after no split: README.md"):
        assert load_corpus(str(tmp_path)).splits.keys() == splits.keys()
    for number in range(7):
        (tmp_path / f"{number}.md").write_text("of none either")
    with pytest.raises(ValueError, match="and more that are not: .* and 3 more"):
        load_corpus(str(tmp_path))
    for number in range(7):
        (tmp_path / f"{number}.md").unlink()
    (tmp_path / "README.md").rename(tmp_path / "train_test_questions.txt")
    with pytest.raises(ValueError, match="train_test_questions.txt is named after more than one of train, validation"):
        load_corpus(str(tmp_path))


def test_one_file_is_cut_at_paragraphs_and_nothing_is_lost_or_reordered(tmp_path):
    text = "".join(f"paragraph {index} of the text\nin two lines\n\n" for index in range(400))
    path = tmp_path / "text.txt"
    path.write_text(text)
    splits = load_corpus(str(path)).splits
    pieces = [splits[name][0] for name in ("train", "validation", "test")]
    assert "".join(pieces) == text
    assert all(piece.startswith("paragraph") for piece in pieces)
    assert 0.85 < len(pieces[0]) / len(text) < 0.95


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "text.txt").write_text("To be, or not to be.", encoding="utf-8-sig")
    assert load_other_text(str(tmp_path / "text.txt")).splits["test"] == ["To be, or not to be."]


def test_a_file_of_windows_is_the_same_text(tmp_path):
    text = "".join(f"paragraph {index} of the text\nin two lines\n\n" for index in range(400))
    (tmp_path / "unix.txt").write_bytes(text.encode())
    (tmp_path / "windows.txt").write_bytes(text.replace("\n", "\r\n").encode())
    assert load_corpus(str(tmp_path / "windows.txt")).splits == load_corpus(str(tmp_path / "unix.txt")).splits


def test_where_no_paragraph_ends_text_is_cut_at_the_end_of_a_line(tmp_path):
    text = "".join(f" \n = Heading {index} = \n \n a line of words , as in WikiText . \n" for index in range(400))
    (tmp_path / "text.txt").write_text(text)
    splits = load_corpus(str(tmp_path / "text.txt")).splits
    pieces = [splits[name][0] for name in SPLITS]
    assert "".join(pieces) == text
    assert all(piece.endswith("\n") for piece in pieces)
    (tmp_path / "text.txt").write_text(text.replace("\n", " "))
    assert sum(len(piece) for (piece,) in load_corpus(str(tmp_path / "text.txt")).splits.values()) == len(text)


def test_a_folder_of_text_may_hold_other_files(tmp_path):
    for index in range(4):
        (tmp_path / f"{index}.txt").write_text(f"text {index}")
    (tmp_path / "meta.jsonl").write_text("{}")
    assert sum(map(len, load_corpus(str(tmp_path)).splits.values())) == 4


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"  \n ", "is empty"),
        (b"\xff\xfe\x00a", "not UTF-8"),
        (b"abc\0def", "binary"),
        (b"a", "too short"),
    ],
)
def test_files_that_hold_no_text_are_refused(tmp_path, content, complaint):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        load_corpus(str(path))


def test_another_text_is_a_file_or_a_folder_whole_or_its_named_splits(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree")
    whole = ["one\n\ntwo\n\nthree"]
    assert load_other_text(str(tmp_path / "a.txt")).splits == {"train": whole, "validation": whole, "test": whole}
    (tmp_path / "b.txt").write_text("four")
    assert {split: [*found] for split, found in load_other_text(str(tmp_path)).splits.items()} == {
        split: [*whole, "four"] for split in SPLITS
    }
    (tmp_path / "b.txt").unlink()
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "a.txt").unlink()
    assert list(load_other_text(str(tmp_path)).splits["test"]) == ["test"]
    with pytest.raises(ValueError, match="no data at"):
        load_other_text(str(tmp_path / "absent"))


def test_missing_data_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="shakespeare, python, imdb, wikitext-2, wikitext-103"):
        load_corpus(str(tmp_path / "absent.txt"))
    with pytest.raises(ValueError, match="no text files"):
        load_corpus(str(tmp_path))


def test_the_validation_text_of_wikitext_by_itself_is_split_as_a_file_is(tmp_path, monkeypatch):
    lines = [f"line {number}\n" + "\n" * (number % 7 == 0) for number in range(300)]
    loaded = {split: {"text": lines if split == "validation" else ["other"]} for split in SPLITS}
    monkeypatch.setattr("chiaroscuro.data.corpus.from_hub", lambda *_: loaded)
    (tmp_path / "valid.txt").write_text("".join(lines))
    found = load_corpus("wikitext-validation").splits
    assert found == load_corpus(str(tmp_path / "valid.txt")).splits
    assert len(found["test"][0]) > 50
    assert load_other_text("wikitext-validation").splits == dict.fromkeys(SPLITS, ["".join(lines)])


def test_who_says_that_there_is_no_network_takes_what_was_fetched_before(monkeypatch):
    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", asked)
    monkeypatch.setattr("datasets.load_dataset", lambda *_: {split: {"text": [split]} for split in SPLITS})
    assert load_corpus("wikitext-2").splits == {split: [split] for split in SPLITS}


def test_wikitext_without_a_network_says_how_to_give_local_text(tmp_path):
    code = "from chiaroscuro.data import load_corpus; load_corpus('wikitext-2')"
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HOME": str(tmp_path)}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode != 0
    assert "ValueError: Salesforce/wikitext could not be fetched" in answer.stderr
    assert "give a text file, or a folder" in answer.stderr
    assert "--test-on NAME=PATH" in answer.stderr
