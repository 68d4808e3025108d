"""WikiText's articles as running text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiaroscuro.data import load_corpus, load_other_text
from chiaroscuro.data.wikitext import articles

TWO_ARTICLES = """
 = A lamp =

 The lamp ( an old one ) cost $ 1 @,@ 250 , or 3 @.@ 5 % more ; it 's well @-@ made .
 " Light ! " she said . " More <unk> light , " he did n 't say .

 = = Its shade = =

 The <unk> @-@ coloured shade is torn [ ... ] and gone .

 = A = sign in a title =

 Nothing = nothing .
"""


def test_articles_are_spaced_as_prose_without_headings_and_placeholders():
    assert articles(TWO_ARTICLES) == [
        "The lamp (an old one) cost $1,250, or 3.5% more; it's well-made. "
        '"Light!" she said. "More light," he did n\'t say. The shade is torn [...] and gone.',
        "Nothing = nothing.",
    ]


def test_text_without_titles_is_one_article():
    assert articles("one .\n\ntwo , three .\n") == ["one. two, three."]


@given(st.lists(st.sampled_from(["word", "<unk>", '"', ",", ".", "(", ")", "'s", "a @-@ b", "1 @.@ 5"]), max_size=30))
def test_nothing_but_spaces_and_placeholders_is_lost(words):
    found = "".join(articles("first " + " ".join(words)))
    kept = "first " + " ".join(word for word in words if word != "<unk>")
    assert found.replace(" ", "") == kept.replace("@", "").replace(" ", "")


@pytest.mark.parametrize("text", ["", " \n", "\n = A title = \n\n = = A section = = \n", "<unk> <unk>"])
def test_text_without_prose_is_refused(text):
    with pytest.raises(ValueError, match="no prose"):
        articles(text)


def test_a_file_or_folder_is_read_as_articles_when_told_to(tmp_path):
    file = tmp_path / "valid.txt"
    file.write_text(TWO_ARTICLES)
    found = load_other_text(f"articles:{file}")
    assert found.name == f"articles:{file}"
    assert found.splits["test"] == articles(TWO_ARTICLES)
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text(f"the {split} text .")
    assert load_other_text(f"articles:{tmp_path}").splits["test"] == ["the test text."]
    assert load_corpus(f"articles:{tmp_path}").splits["train"] == ["the train text."]
    with pytest.raises(ValueError, match="no data at"):
        load_corpus(f"articles:{tmp_path / 'absent.txt'}")
