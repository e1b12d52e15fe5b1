"""Training objectives, one per file."""

from .base import Objective, Reading
from .cca import CCA
from .divergences import ForwardKL, ReverseKL
from .guidance_free import GuidanceFree
from .likelihood import Likelihood
from .model_guidance import ModelGuidance

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective for objective in (ForwardKL, ReverseKL, Likelihood, CCA, GuidanceFree, ModelGuidance)
}
"""Objectives by name."""

__all__ = [
    "CCA",
    "OBJECTIVES",
    "ForwardKL",
    "GuidanceFree",
    "Likelihood",
    "ModelGuidance",
    "Objective",
    "Reading",
    "ReverseKL",
]
