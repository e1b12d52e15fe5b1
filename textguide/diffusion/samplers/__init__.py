"""Orders and samplers of masked diffusion, one paper per file: which positions a step fills, and which it empties.

Example::

    diffusion.generate(model, tokenizer, prompts, sampler=EntropyBound(0.1), order="entropy")
    diffusion.generate(model, tokenizer, prompts, sampler="p2:eta=1", steps=128)
"""

from .base import Chosen, Order, Turn, Unmasking
from .certainties import Confidence, Entropy, Margin, Random
from .entropy_bound import EntropyBound
from .path_planning import PathPlanning
from .position_calibrated import PositionCalibrated
from .remasking_posterior import RemaskingPosterior
from .shares import EqualShares, Threshold
from .stability import Stability

__all__ = [
    "Chosen",
    "Confidence",
    "Entropy",
    "EntropyBound",
    "EqualShares",
    "Margin",
    "Order",
    "PathPlanning",
    "PositionCalibrated",
    "Random",
    "RemaskingPosterior",
    "Stability",
    "Threshold",
    "Turn",
    "Unmasking",
]
