"""How good a model is on held-out text."""

from chiaroscuro.evaluation.classification import evaluate_classifier, evaluate_recall
from chiaroscuro.evaluation.perplexity import Evaluation, evaluate, perplexity_of, unigram_perplexity
from chiaroscuro.evaluation.sliding import evaluate_sliding

__all__ = [
    "Evaluation",
    "evaluate",
    "evaluate_classifier",
    "evaluate_recall",
    "evaluate_sliding",
    "perplexity_of",
    "unigram_perplexity",
]
