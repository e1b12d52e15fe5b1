"""Classifiers of text: anything that gives ``log p(class | text)``, and so can guide a language model."""

from .base import CausalClassifier, CausalState, Classifier, checked
from .function import FunctionClassifier
from .linear import Features, LinearClassifier, load_linear
from .resolving import resolve

__all__ = [
    "CausalClassifier",
    "CausalState",
    "Classifier",
    "Features",
    "FunctionClassifier",
    "LinearClassifier",
    "checked",
    "load_linear",
    "resolve",
]
