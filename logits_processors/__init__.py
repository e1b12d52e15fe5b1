"""Guidance for decoding loops that cannot be replaced: logits processors and hooks."""

from .awrs import AWRSLogitsProcessor
from .caif import CAIFLogitsProcessor
from .diffusion_hooks import AllowedTokensProcessor, MaskedDiffusionCFGHook
from .guided_denoiser import GuidedDenoiser, guided_pipeline
from .hf import CFGLogitsProcessor, GuidanceLogitsProcessor

__all__ = [
    "AWRSLogitsProcessor",
    "AllowedTokensProcessor",
    "CAIFLogitsProcessor",
    "CFGLogitsProcessor",
    "GuidanceLogitsProcessor",
    "GuidedDenoiser",
    "MaskedDiffusionCFGHook",
    "guided_pipeline",
]
