"""Guidance methods: pure mathematics on log-probabilities, one paper a file."""

from .base import Branch, Guidance, Step
from .cfg import CFG, scale_from_weight, weight_from_scale
from .prompts import Message

__all__ = ["CFG", "Branch", "Guidance", "Message", "Step", "scale_from_weight", "weight_from_scale"]
