"""Masked diffusion language models: sampling, infilling and likelihood, with guidance in all of them.

Example::

    model, tokenizer = textguide.diffusion.load("sudoku4")
    puzzles = ["0300124300000431"]
    out = textguide.diffusion.generate(model, tokenizer, puzzles, gen_length=16, guidance=textguide.ACFG(1.5))
"""

from . import samplers
from .caching import DelayedCache
from .caching.agreement import CacheAgreement, cache_agreement
from .denoisers import Denoiser, denoiser
from .generation import DiffusionResult, generate, infill, stream
from .likelihood import DiffusionScore, score
from .loading import bundled, load
from .picture import picture_page, picture_widget
from .sampling import CanvasStep

__all__ = [
    "CacheAgreement",
    "CanvasStep",
    "DelayedCache",
    "Denoiser",
    "DiffusionResult",
    "DiffusionScore",
    "bundled",
    "cache_agreement",
    "denoiser",
    "generate",
    "infill",
    "load",
    "picture_page",
    "picture_widget",
    "samplers",
    "score",
    "stream",
]
