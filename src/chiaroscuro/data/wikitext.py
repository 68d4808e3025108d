"""WikiText's articles as running text, for models that were trained on something else.

Its files are tokenized: spaces part words from punctuation, `@-@`, `@,@` and `@.@` are marks within a word, and the
older form has `<unk>` for rare words. A model of other text has seen none of that and loses more on it than on the
language, and how much is a matter of chance (docs/log.md, 2026-11-29); so it is usual to undo it before such a model is
measured (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 3.1).
"""

import re

_TITLE = re.compile(r"^ ?= [^=].* = *$", re.MULTILINE)  # of an article; its sections have more signs on either side
_WITHIN_A_WORD = re.compile(" @([-,.])@ ")
_ENDING = {".", ",", ";", ":", "!", "?", ")", "]", "%", "...", "'s", "'t", "'m", "'d", "'re", "'ve", "'ll"}
_BEGINNING = {"(", "[", "$", "£"}


def articles(text: str) -> list[str]:
    """The articles of `text`, each in one line: its paragraphs without headings, without rare words that `<unk>` stands
    for, and spaced as prose is. Text without titles is one article. Raises ValueError when there is no prose in it."""
    lines = (article.splitlines() for article in _TITLE.split(text))
    found = [" ".join(_prose(line) for line in article if line.strip() and not _is_heading(line)) for article in lines]
    if not any(found):
        raise ValueError("no prose in a text that was to hold articles as WikiText does")
    return [article for article in found if article]


def _is_heading(line: str) -> bool:
    return line.strip().startswith("= ")


def _prose(line: str) -> str:
    """Quotation marks open and close in turn."""
    prose, joined, quoted = "", True, False
    for word in _WITHIN_A_WORD.sub(r"\1", line).split():
        if "<unk>" in word:
            continue
        ends = word in _ENDING or (quoted and word == '"')
        prose += word if joined or ends else f" {word}"
        joined = word in _BEGINNING or (not quoted and word == '"')
        quoted ^= word == '"'
    return prose
