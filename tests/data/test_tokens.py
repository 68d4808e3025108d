"""Encoded text on disk and its windows."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiaroscuro.data import Corpus, TokenWindows, cache_folder, encode, load_corpus, load_tokenizer, train_tokenizer
from chiaroscuro.data.tokenizer import pieces

TEXTS = ["the cat sat on the mat\n" * 30, "another text altogether\n" * 10]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CHIAROSCURO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_documents_are_encoded_in_order_with_an_end_after_each(cache):
    tokenizer = train_tokenizer(TEXTS, 300)
    tokens = encode(Corpus("x", {"train": TEXTS, "test": TEXTS[:1]}), tokenizer)
    expected = [id for text in TEXTS for id in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
    assert tokens["train"].tolist() == expected
    assert isinstance(tokens["train"], np.memmap)
    assert tokens["train"].dtype == np.uint16


def test_what_a_tokenizer_was_last_told_to_cut_and_to_fill_is_not_done_to_a_corpus(cache, tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300)
    corpus = Corpus("x", {"train": TEXTS})
    expected = encode(corpus, tokenizer)["train"].tolist()
    tokenizer(["a", "b c"], truncation=True, max_length=4, padding="max_length")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for same in (tokenizer, load_tokenizer(tmp_path / "tokenizer")):
        assert encode(corpus, same)["train"].tolist() == expected
    assert len(list(cache.iterdir())) == 1


def test_files_in_the_cache_may_be_read_by_whom_others_may_be(cache, tmp_path):
    (tmp_path / "other").touch()
    encode(Corpus("x", {"train": TEXTS}), train_tokenizer(TEXTS, 300))
    (file,) = cache.iterdir()
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_long_document_has_one_end_and_its_own_tokens(cache, monkeypatch):
    tokenizer = train_tokenizer(TEXTS, 300)
    monkeypatch.setattr(pieces, "__defaults__", (40,))
    assert len(list(pieces(TEXTS[0]))) > 10
    tokens = encode(Corpus("x", {"train": TEXTS[:1]}), tokenizer)["train"]
    assert tokens.tolist() == [*tokenizer(TEXTS[0])["input_ids"], tokenizer.eos_token_id]


def test_what_cannot_be_written_leaves_nothing_behind_and_names_its_place(cache, monkeypatch):
    tokenizer = train_tokenizer(TEXTS, 300)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("chiaroscuro.data.tokens._write_array", full)
        with pytest.raises(OSError, match=rf"{cache}.*No space left on device.*CHIAROSCURO_CACHE"):
            encode(Corpus("x", {"train": TEXTS}), tokenizer)
    assert not list(cache.iterdir())
    tokens = encode(Corpus("x", {"train": TEXTS}), tokenizer)["train"].tolist()
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for end in (0, 5, len(whole) - 2):
        file.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=f"{file} is damaged .*: remove it, and it is made again"):
            encode(Corpus("x", {"train": TEXTS}), tokenizer)
    file.unlink()
    assert encode(Corpus("x", {"train": TEXTS}), tokenizer)["train"].tolist() == tokens


def test_a_folder_is_encoded_a_file_at_a_time(cache, tmp_path):
    """In less memory than its text takes."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"document {number} of many\n" * 8_000)
    size = sum(file.stat().st_size for file in folder.iterdir())
    corpus = load_corpus(str(folder))
    tokenizer = train_tokenizer(corpus.splits["test"], 300)
    tracemalloc.start()
    tokens = encode(corpus, tokenizer)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(corpus.splits["train"]) == 36
    assert peak < size
    assert tokenizer.decode(tokens["train"].astype(int)[-50_000:].tolist()).endswith("of many\n<|endoftext|>")
    assert np.array_equal(tokens["test"], encode(Corpus("x", {"test": list(corpus.splits["test"])}), tokenizer)["test"])


def test_a_split_without_documents_is_named(cache):
    tokenizer = train_tokenizer(["some text"], 300)
    with pytest.raises(ValueError, match="reviews has nothing for the validation split"):
        encode(Corpus("reviews", {"train": ["some text"], "validation": []}), tokenizer)


def test_a_second_call_reads_what_the_first_wrote(cache):
    tokenizer = train_tokenizer(TEXTS, 300)
    corpus = Corpus("x", {"train": TEXTS})
    encode(corpus, tokenizer)
    (file,) = cache_folder().iterdir()
    written = file.stat().st_mtime_ns
    encode(corpus, tokenizer)
    assert [file.stat().st_mtime_ns for file in cache_folder().iterdir()] == [written]


def test_other_text_and_another_tokenizer_are_not_mixed_up(cache):
    first, second = train_tokenizer(TEXTS, 300), train_tokenizer(TEXTS, 262)
    one = encode(Corpus("x", {"train": TEXTS}), first)["train"]
    assert len(encode(Corpus("x", {"train": TEXTS}), second)["train"]) != len(one)
    # The same characters cut into other documents are other text.
    assert len(encode(Corpus("x", {"train": ["".join(TEXTS)]}), first)["train"]) != len(one)


def test_each_document_has_the_end_of_its_own_tokenizer(cache):
    """Of two that have the same file, as a base model and one that is made for chats may."""
    tokenizer, ends = train_tokenizer(TEXTS, 300), []
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot|>"]})
    for end in (tokenizer.eos_token, "<|eot|>"):
        tokenizer.eos_token = end
        ends.append(encode(Corpus("x", {"train": TEXTS}), tokenizer)["train"][-1])
    assert ends == tokenizer.convert_tokens_to_ids([tokenizer.decode(each) for each in ends])
    assert ends[0] != ends[1] == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no end-of-text token"):
        encode(Corpus("x", {"train": TEXTS}), tokenizer)


@given(count=st.integers(2, 60), length=st.integers(2, 12))
def test_windows_predict_every_token_but_the_first_exactly_once(count, length):
    tokens = np.arange(count, dtype=np.uint16)
    if count < length:
        with pytest.raises(ValueError, match="fewer than one window"):
            TokenWindows(tokens, length)
        return
    windows = TokenWindows(tokens, length)
    predicted = [id for window in windows for id in window["labels"][1:].tolist()]
    assert predicted == list(range(1, len(predicted) + 1))
    assert count - 1 - len(predicted) < length - 1


def test_fewer_windows_are_spread_over_the_text():
    tokens = np.arange(101, dtype=np.uint16)
    windows = TokenWindows(tokens, 11, count=3)
    assert [windows[index]["labels"][0].item() for index in range(len(windows))] == [0, 30, 60]
    assert len(TokenWindows(tokens, 11, count=40)) == 10
    for most, places in ((10, range(10)), (99, range(10)), (6, (0, 1, 3, 5, 6, 8)), (3, (0, 3, 6))):
        assert TokenWindows(tokens, 11).spread(most)[:, 0].tolist() == [10 * place for place in places]


def test_a_window_of_one_token_predicts_nothing_and_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        TokenWindows(np.arange(5), 1)
