"""Corpora, tokenizers, and encoded text on disk."""

from chiaroscuro.data.corpus import Corpus, load_corpus, read_text
from chiaroscuro.data.tokenizer import load_tokenizer, token_bytes, train_tokenizer
from chiaroscuro.data.tokens import TokenWindows, cache_folder, encode

__all__ = [
    "Corpus",
    "TokenWindows",
    "cache_folder",
    "encode",
    "load_corpus",
    "load_tokenizer",
    "read_text",
    "token_bytes",
    "train_tokenizer",
]
