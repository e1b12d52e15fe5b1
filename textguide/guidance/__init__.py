"""Guidance methods: pure mathematics on log-probabilities, one paper a file."""

from .acfg import ACFG
from .awrs import AWRS
from .base import Branch, BranchGuidance, Guidance, Step, TokenConstraint, TokenReweighting
from .caif import CAIF
from .cfg import CFG, scale_from_weight, weight_from_scale
from .composed import Composed, as_guidance, split, with_scale
from .language_model import LMGuidance
from .prompts import Message

__all__ = [
    "ACFG",
    "AWRS",
    "CAIF",
    "CFG",
    "Branch",
    "BranchGuidance",
    "Composed",
    "Guidance",
    "LMGuidance",
    "Message",
    "Step",
    "TokenConstraint",
    "TokenReweighting",
    "as_guidance",
    "scale_from_weight",
    "split",
    "weight_from_scale",
    "with_scale",
]
