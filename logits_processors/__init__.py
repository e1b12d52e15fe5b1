"""Where guidance meets other people's decoding loops."""

from .diffusion_hooks import AllowedTokensProcessor, MaskedDiffusionCFGHook
from .hf import CFGLogitsProcessor

__all__ = ["AllowedTokensProcessor", "CFGLogitsProcessor", "MaskedDiffusionCFGHook"]
