"""Classifiers of text: anything that gives ``log p(class | text)``, and so can guide a language model."""

from .base import CausalClassifier, CausalState, Classifier, checked
from .causal import CausalSequenceClassifier
from .causal_head import HeadClassifier, load_causal
from .compression import GzipClassifier
from .embedding import EmbeddingClassifier, Encoder, load_embedding, load_encoder
from .estimator import EstimatorClassifier, profanity
from .function import FunctionClassifier
from .linear import Features, LinearClassifier, load_linear
from .resolving import load, resolve
from .sequence import SequenceClassifier, load_sequence
from .training import Examples, Report, evaluate, read_examples, train_causal, train_embedding, train_linear
from .zero_shot import ZeroShotClassifier

__all__ = [
    "CausalClassifier",
    "CausalSequenceClassifier",
    "CausalState",
    "Classifier",
    "EmbeddingClassifier",
    "Encoder",
    "EstimatorClassifier",
    "Examples",
    "Features",
    "FunctionClassifier",
    "GzipClassifier",
    "HeadClassifier",
    "LinearClassifier",
    "Report",
    "SequenceClassifier",
    "ZeroShotClassifier",
    "checked",
    "evaluate",
    "load",
    "load_causal",
    "load_embedding",
    "load_encoder",
    "load_linear",
    "load_sequence",
    "profanity",
    "read_examples",
    "resolve",
    "train_causal",
    "train_embedding",
    "train_linear",
]
