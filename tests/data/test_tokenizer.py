"""Byte-level tokenizers, trained and read."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders

from chiaroscuro.data import load_tokenizer, token_bytes, train_tokenizer
from chiaroscuro.data.tokenizer import PIECE, pieces, symbol_tokenizer

TEXTS = ["the cat sat on the mat, the mat sat on the cat\n" * 20, "naïve café 🙂 שלום"]


def test_any_text_comes_back_and_its_bytes_are_counted():
    tokenizer = train_tokenizer(TEXTS, 300)
    assert len(tokenizer) <= 300
    sizes = token_bytes(tokenizer)
    for text in (*TEXTS, "never seen: \t\x00 ∑ 漢字"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert sizes[ids].sum() == len(text.encode())
    assert sizes[tokenizer.eos_token_id] == 0
    tokenizer.add_tokens(["漢字"])
    tokenizer.add_special_tokens({"bos_token": "<s>", "extra_special_tokens": ["<|user|>"]})
    ids = tokenizer("<s><|user|>the 漢字")["input_ids"]
    assert token_bytes(tokenizer)[ids].sum() == len("the 漢字".encode())


def test_bytes_of_a_vocabulary_that_is_not_byte_level_are_not_known():
    assert token_bytes(symbol_tokenizer(["a", "b"])) is None


def test_a_byte_level_decoder_is_found_among_others_too():
    tokenizer = train_tokenizer(TEXTS, 300)
    sizes = token_bytes(tokenizer)
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel()])
    assert np.array_equal(token_bytes(tokenizer), sizes)


@given(st.text(st.sampled_from("at' \n\t\x1c\x85\u3000.1é🙂") | st.characters(codec="utf-8")), st.integers(1, 20))
@example("the cat's  \n\n mat\n", 1)
def test_tokens_of_the_pieces_are_those_of_the_whole(text, size):
    tokenizer = train_tokenizer(TEXTS, 300)
    cut = list(pieces(text, size))
    assert "".join(cut) == text
    assert sum((tokenizer(piece)["input_ids"] for piece in cut), []) == tokenizer(text)["input_ids"]


def test_long_texts_are_cut():
    assert max(map(len, pieces("seven words of text in a row\n" * PIECE))) < PIECE + 10
    in_pieces, at_once = (train_tokenizer(texts, 300) for texts in (TEXTS, list(pieces(TEXTS[0], 50)) + TEXTS[1:]))
    assert in_pieces.backend_tokenizer.to_str() == at_once.backend_tokenizer.to_str()


def test_training_depends_on_the_texts_alone():
    first, second = (train_tokenizer(TEXTS, 300).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_a_saved_tokenizer_is_read_back(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]
    assert again.eos_token_id == tokenizer.eos_token_id


def test_vocabulary_and_merges_as_gpt2_is_published(tmp_path):
    trained = train_tokenizer(TEXTS, 300)
    content = json.loads(trained.backend_tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(content["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in content["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    read = load_tokenizer(tmp_path)
    assert read(TEXTS[1])["input_ids"] == trained(TEXTS[1])["input_ids"]


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer in"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="at least 257"):
        train_tokenizer(TEXTS, 100)
