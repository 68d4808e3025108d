"""How good a model is on held-out text."""

from chiaroscuro.evaluation.perplexity import Evaluation, evaluate, unigram_perplexity

__all__ = ["Evaluation", "evaluate", "unigram_perplexity"]
