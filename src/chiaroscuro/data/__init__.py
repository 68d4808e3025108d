"""Corpora, tokenizers, labelled sequences, and encoded text on disk."""

from chiaroscuro.data.corpus import SPLITS, Corpus, load_corpus, load_other_text, read_text
from chiaroscuro.data.labelled import (
    LONGEST_EXPRESSION,
    TASKS,
    LabelledData,
    LabelledSequences,
    check_length,
    check_source,
    generate_listops,
    load_labelled,
    pad_batch,
)
from chiaroscuro.data.recall import RecallExamples, generate_recall
from chiaroscuro.data.tokenizer import encode_text, load_tokenizer, token_bytes, train_tokenizer
from chiaroscuro.data.tokens import Sample, TokenWindows, cache_folder, encode
from chiaroscuro.data.wikitext import articles

__all__ = [
    "LONGEST_EXPRESSION",
    "SPLITS",
    "TASKS",
    "Corpus",
    "LabelledData",
    "LabelledSequences",
    "RecallExamples",
    "Sample",
    "TokenWindows",
    "articles",
    "cache_folder",
    "encode",
    "encode_text",
    "check_length",
    "check_source",
    "generate_listops",
    "generate_recall",
    "load_corpus",
    "load_labelled",
    "load_other_text",
    "load_tokenizer",
    "pad_batch",
    "read_text",
    "token_bytes",
    "train_tokenizer",
]
