"""Reviews from files."""

import gzip
import json

import pytest
import torch

from chiaroscuro.data import LabelledSequences, load_corpus, load_labelled, pad_batch
from chiaroscuro.data.imdb import load_imdb


@pytest.fixture
def folder(tmp_path):
    def write(name, count, labelled):
        lines = [
            {"text": f"{name} review {index}"} | ({"label": index % 2} if labelled else {}) for index in range(count)
        ]
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.write("\n".join(map(json.dumps, lines)))

    write("train", 300, True)
    write("test", 20, True)
    write("unsupervised", 50, False)
    return tmp_path


def test_the_test_split_is_the_published_one_and_a_tenth_of_training_is_held_out(folder):
    reviews = load_imdb(str(folder))
    sizes = {split: len(texts) for split, texts in reviews.texts.items()}
    assert sizes["test"] == 20
    assert sizes["train"] + sizes["validation"] == 300
    assert 15 <= sizes["validation"] <= 45
    for split, texts in reviews.texts.items():
        assert reviews.labels[split] == [int(text.rsplit(" ", 1)[1]) % 2 for text in texts]
    assert load_imdb(str(folder)) == reviews


def test_as_text_to_model_the_unlabelled_reviews_are_trained_on_and_none_is_in_two_splits(folder):
    splits = load_corpus(str(folder)).splits
    assert sum(map(len, splits.values())) == 370
    assert len({text for texts in splits.values() for text in texts}) == 370
    assert sum(text.startswith("unsupervised") for text in splits["train"]) == 50
    assert set(splits["validation"]) == set(load_imdb(str(folder)).texts["validation"])


@pytest.mark.usefixtures("cache")
def test_sequences_are_cut_padded_on_the_right_and_keep_their_labels(folder):
    data = load_labelled("imdb", str(folder), vocab_size=300)
    sequences = LabelledSequences(data.tokens["test"], data.labels["test"], data.tokenizer.eos_token_id, 9)
    reviews = load_imdb(str(folder))
    for index, text in enumerate(reviews.texts["test"]):
        assert sequences[index]["input_ids"].tolist() == data.tokenizer(text)["input_ids"][:9]
        assert int(sequences[index]["labels"]) == reviews.labels["test"][index]
    batch = pad_batch(
        [
            {"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor(1)},
            {"input_ids": torch.tensor([4]), "labels": torch.tensor(0)},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]


def test_what_holds_no_reviews_is_named(folder):
    (folder / "test.jsonl.gz").write_bytes((folder / "test.jsonl.gz").read_bytes()[:30])
    with pytest.raises(ValueError, match=r"test\.jsonl\.gz is damaged"):
        load_imdb(str(folder))
    (folder / "test.jsonl.gz").unlink()
    with pytest.raises(ValueError, match=r"test\.jsonl or test\.jsonl\.gz is missing"):
        load_imdb(str(folder))
    for line, complaint in (
        ('{"text": "good", "label": 7}', "label 7; expected 0 or 1"),
        ('{"label": 1}', "damaged"),
        ('{"text": "good", "label": 1}\n{"text": " ", "label": 0}', "review 2 is empty"),
        ("[1]", "damaged"),
    ):
        (folder / "test.jsonl").write_text(line)
        with pytest.raises(ValueError, match=complaint):
            load_imdb(str(folder))


@pytest.mark.usefixtures("cache")
def test_a_review_that_holds_the_end_of_text_is_not_taken_for_two(tmp_path):
    for name in ("train", "test"):
        lines = [{"text": f"a <|endoftext|> b {index}", "label": 0} for index in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = load_labelled("imdb", str(tmp_path), vocab_size=300)
    with pytest.raises(ValueError, match="30 labels for 60 sequences"):
        LabelledSequences(data.tokens["test"], data.labels["test"], data.tokenizer.eos_token_id, 9)


def test_unknown_tasks_are_answered_with_the_known_ones():
    with pytest.raises(
        ValueError, match="unknown task 'juggling'; known tasks: lm, recall, imdb, listops, listops_flat"
    ):
        load_labelled("juggling", "")
