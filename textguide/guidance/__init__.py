"""Guidance methods: pure functions of log-probabilities, one paper per file.

All modules of this folder and of ``experimental`` are imported here, so a new file is registered without further
changes. Modules of other packages are imported as well; see ``plugins.py``.
"""

import importlib
import pkgutil

from . import plugins
from .acfg import ACFG
from .apg import APG
from .awrs import AWRS
from .base import About, Branch, BranchGuidance, Guidance, Sampling, Step, TokenConstraint, TokenReweighting, parts_of
from .beta_cfg import BetaCFG
from .caif import CAIF
from .cfg import CFG, scale_from_weight, weight_from_scale
from .composed import Composed, split, with_scale
from .context_aware import ContextAware
from .contrastive import ContrastiveDecoding
from .decore import DeCoRe
from .dexperts import DExperts, ProxyTuning
from .discrete_classifier import DiscreteClassifier
from .dola import DoLa
from .experimental.annealed import AnnealedCFG
from .experimental.corrsynth import CorrSynth
from .experimental.dynamic import DynamicCFG
from .experimental.eager import EAGer
from .experimental.gradient_free_classifier import GradientFreeClassifier
from .experimental.independent_condition import IndependentCondition
from .experimental.s2 import S2Guidance
from .experimental.tfg import TFG
from .experimental.time_step import TimeStepGuidance
from .experimental.token_perturbation import TokenPerturbation
from .expert_ensemble import ExpertEnsemble
from .feynman_kac import FeynmanKac
from .formula import Formula
from .genarm import GenARM
from .instruction_contrastive import InstructionContrastive
from .language_model import LMGuidance
from .nag import NAG
from .particle_gibbs import ParticleGibbs
from .power_sampling import PowerSampling
from .prompts import Message
from .reward import Reward
from .scaled import Contrast, Scaled
from .sled import SLED
from .spec import as_guidance
from .steering import Steering
from .token_prior import TokenPrior
from .value_guidance import ValueGuidance
from .vcd import VCD

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
for _method in list(Guidance.registry.values()):  # without an import for each new file
    if _method.__module__.startswith(f"{__name__}."):
        globals()[_method.__name__] = _method
plugins.load()

__all__ = [
    "ACFG",
    "APG",
    "AWRS",
    "CAIF",
    "CFG",
    "NAG",
    "SLED",
    "TFG",
    "VCD",
    "About",
    "AnnealedCFG",
    "BetaCFG",
    "Branch",
    "BranchGuidance",
    "Composed",
    "ContextAware",
    "Contrast",
    "ContrastiveDecoding",
    "CorrSynth",
    "DExperts",
    "DeCoRe",
    "DiscreteClassifier",
    "DoLa",
    "DynamicCFG",
    "EAGer",
    "ExpertEnsemble",
    "FeynmanKac",
    "Formula",
    "GenARM",
    "GradientFreeClassifier",
    "Guidance",
    "IndependentCondition",
    "InstructionContrastive",
    "LMGuidance",
    "Message",
    "ParticleGibbs",
    "PowerSampling",
    "ProxyTuning",
    "Reward",
    "S2Guidance",
    "Scaled",
    "Steering",
    "Step",
    "TimeStepGuidance",
    "Sampling",
    "TokenConstraint",
    "parts_of",
    "TokenPerturbation",
    "TokenPrior",
    "TokenReweighting",
    "ValueGuidance",
    "as_guidance",
    "scale_from_weight",
    "split",
    "weight_from_scale",
    "with_scale",
]
