"""Classifiers and rewards: everything that returns numbers for a text and can therefore guide a language model."""

from .base import CausalClassifier, CausalScorer, CausalState, Classifier, Scorer, checked
from .canvases import CanvasPredictor, EncoderPredictor, FunctionPredictor
from .causal import CausalSequenceClassifier
from .causal_head import HeadClassifier, load_causal
from .compression import GzipClassifier
from .embedding import EmbeddingClassifier, Encoder, load_embedding, load_encoder
from .estimator import EstimatorClassifier, profanity
from .function import FunctionClassifier
from .linear import Features, LinearClassifier, load_linear
from .resolving import RESOLVERS, load, resolve
from .rewards import FunctionReward, RewardModel, RewardScorer, resolve_reward
from .sequence import SequenceClassifier, load_sequence
from .training import Examples, Report, evaluate, read_examples, train_causal, train_embedding, train_linear
from .value_head import ValueHead, load_value
from .zero_shot import ZeroShotClassifier

__all__ = [
    "RESOLVERS",
    "CanvasPredictor",
    "CausalClassifier",
    "CausalScorer",
    "CausalSequenceClassifier",
    "CausalState",
    "Classifier",
    "EmbeddingClassifier",
    "Encoder",
    "EncoderPredictor",
    "EstimatorClassifier",
    "Examples",
    "Features",
    "FunctionClassifier",
    "FunctionPredictor",
    "FunctionReward",
    "GzipClassifier",
    "HeadClassifier",
    "LinearClassifier",
    "Report",
    "RewardModel",
    "RewardScorer",
    "Scorer",
    "SequenceClassifier",
    "ValueHead",
    "ZeroShotClassifier",
    "checked",
    "evaluate",
    "load",
    "load_causal",
    "load_embedding",
    "load_encoder",
    "load_linear",
    "load_sequence",
    "load_value",
    "profanity",
    "read_examples",
    "resolve",
    "resolve_reward",
    "train_causal",
    "train_embedding",
    "train_linear",
]
