"""Guidance methods: pure mathematics on log-probabilities, one paper a file."""

from .acfg import ACFG
from .base import Branch, BranchGuidance, Guidance, Step, TokenConstraint, TokenReweighting
from .cfg import CFG, scale_from_weight, weight_from_scale
from .prompts import Message

__all__ = [
    "ACFG",
    "CFG",
    "Branch",
    "BranchGuidance",
    "Guidance",
    "Message",
    "Step",
    "TokenConstraint",
    "TokenReweighting",
    "scale_from_weight",
    "weight_from_scale",
]
