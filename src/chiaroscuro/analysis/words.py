"""Word classes of the tokens of English text.

Closed classes are lists, since English has few such words; everything else is an open word (noun, verb, adjective,
adverb). A tagger that tells those apart would need a model, and none can be had without a download.
"""

from itertools import pairwise

CLASSES = (
    "determiner",
    "pronoun",
    "preposition",
    "conjunction",
    "auxiliary",
    "open word",
    "piece of a word",
    "number",
    "punctuation",
)
_LISTS = {
    "determiner": "a an the this that these those each every either neither some any no all both half such what which "
    "my your his her its our their another other few many much more most several enough",
    "pronoun": "i you he she it we they me him us them myself yourself himself herself itself ourselves themselves "
    "who whom whose mine yours hers ours theirs someone anyone everyone nobody nothing something anything everything "
    "one none there here",
    "preposition": "of in to for with on at by from about as into like through after over between out against during "
    "without before under around among off above near behind across beyond up down upon within along toward towards "
    "until since despite except than",
    "conjunction": "and but or nor so yet if because while although though unless whereas whether when where why how",
    "auxiliary": "be is am are was were been being have has had having do does did doing will would shall should can "
    "could may might must not 's 're 've 'll 'd 'm 't",
}
_CLASS_OF = {word: name for name, words in _LISTS.items() for word in words.split()}


def word_classes(pieces: list[str]) -> list[str]:
    """The class of each token of a text, given the text behind each.

    A token that is a whole word has the class of the word; a letter sequence that begins or goes on within a longer
    word is a piece of it. White space before a word belongs to it.
    """
    joined = [left[-1:].isalpha() and right[:1].isalpha() for left, right in pairwise(["", *pieces, ""])]
    classes = []
    for index, piece in enumerate(pieces):
        word = piece.strip()
        if not any(character.isalnum() for character in word):
            classes.append("punctuation")
        elif any(character.isdigit() for character in word):
            classes.append("number")
        elif joined[index] or joined[index + 1]:
            classes.append("piece of a word")
        else:
            classes.append(_CLASS_OF.get(word.lower(), "open word"))
    return classes
