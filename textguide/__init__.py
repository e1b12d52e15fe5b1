"""textguide: steer language models while they decode."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .support import __version__

# Type checkers read these imports and ``__all__``, which is a literal because they cannot evaluate an expression.
if TYPE_CHECKING:
    from . import (
        batch,
        captioning,
        classifiers,
        constraints,
        diffusion,
        distillation,
        guidance,
        models,
        steering,
    )
    from .captioning import caption
    from .distillation import DistillResult, DistillSettings, distill
    from .engine.custom_generate import GuidedDecoding
    from .engine.results import GenerateResult, ScoreResult
    from .engine.speculation import Speculation, SpeculationReport
    from .engine.token_priors import estimate_prior
    from .explanation import Explanation, explain
    from .generation import Branched, StreamChunk, eager, generate, guided_decoding, stream
    from .guidance import (
        ACFG,
        AWRS,
        CAIF,
        CFG,
        EAGer,
        FeynmanKac,
        Guidance,
        LMGuidance,
        PowerSampling,
        Reward,
        TokenPrior,
    )
    from .logits_processors import (
        AWRSLogitsProcessor,
        CAIFLogitsProcessor,
        CFGLogitsProcessor,
        GuidanceLogitsProcessor,
        MaskedDiffusionCFGHook,
    )
    from .logits_processors.vllm_plugin.engine import vllm_engine
    from .models import load
    from .scoring import Evidence, evidence, score
    from .smc.lessons import Lessons
    from .step.effect import Effect

# The same names and the modules that define them, for __getattr__: imported on first use, so that `import textguide`
# does not load torch.
_HOMES = {
    "ACFG": "guidance",
    "AWRS": "guidance",
    "AWRSLogitsProcessor": "logits_processors",
    "CAIF": "guidance",
    "CAIFLogitsProcessor": "logits_processors",
    "CFG": "guidance",
    "CFGLogitsProcessor": "logits_processors",
    "Branched": "generation",
    "DistillResult": "distillation",
    "DistillSettings": "distillation",
    "EAGer": "guidance",
    "Effect": "step.effect",
    "Evidence": "scoring",
    "Explanation": "explanation",
    "FeynmanKac": "guidance",
    "GenerateResult": "engine.results",
    "Guidance": "guidance",
    "GuidanceLogitsProcessor": "logits_processors",
    "GuidedDecoding": "engine.custom_generate",
    "LMGuidance": "guidance",
    "Lessons": "smc.lessons",
    "MaskedDiffusionCFGHook": "logits_processors",
    "PowerSampling": "guidance",
    "Reward": "guidance",
    "ScoreResult": "engine.results",
    "Speculation": "engine.speculation",
    "SpeculationReport": "engine.speculation",
    "StreamChunk": "generation",
    "TokenPrior": "guidance",
    "caption": "captioning",
    "distill": "distillation",
    "eager": "generation",
    "estimate_prior": "engine.token_priors",
    "evidence": "scoring",
    "explain": "explanation",
    "generate": "generation",
    "guided_decoding": "generation",
    "load": "models",
    "score": "scoring",
    "stream": "generation",
    "vllm_engine": "logits_processors.vllm_plugin.engine",
}

# Subpackages that are public under their own names, also imported on first use.
_MODULES = (
    "batch",
    "captioning",
    "classifiers",
    "constraints",
    "diffusion",
    "distillation",
    "guidance",
    "models",
    "steering",
)

__all__ = [
    "__version__",
    "ACFG",
    "AWRS",
    "AWRSLogitsProcessor",
    "Branched",
    "CAIF",
    "CAIFLogitsProcessor",
    "CFG",
    "CFGLogitsProcessor",
    "DistillResult",
    "DistillSettings",
    "EAGer",
    "Effect",
    "Evidence",
    "Explanation",
    "FeynmanKac",
    "GenerateResult",
    "Guidance",
    "GuidanceLogitsProcessor",
    "GuidedDecoding",
    "LMGuidance",
    "Lessons",
    "MaskedDiffusionCFGHook",
    "PowerSampling",
    "Reward",
    "ScoreResult",
    "Speculation",
    "SpeculationReport",
    "StreamChunk",
    "TokenPrior",
    "caption",
    "distill",
    "eager",
    "estimate_prior",
    "evidence",
    "explain",
    "generate",
    "guided_decoding",
    "load",
    "score",
    "stream",
    "vllm_engine",
]


if not TYPE_CHECKING:
    # Hidden from type checkers, which would accept every misspelt name because of it.
    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return importlib.import_module(f".{name}", __name__)
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{home}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]
