"""Masked diffusion language models: sampling, infilling and likelihood, with guidance in all of them.

Example::

    model, tokenizer = textguide.diffusion.load("sudoku4")
    puzzles = ["0300124300000431"]
    out = textguide.diffusion.generate(model, tokenizer, puzzles, textguide.ACFG(1.5), max_new_tokens=16)
"""

from . import samplers
from .caching import DelayedCache
from .caching.agreement import CacheAgreement, cache_agreement
from .denoisers import Denoiser, denoiser
from .generation import generate, infill, stream
from .likelihood import DiffusionScore, score
from .loading import bundled, load
from .options import CanvasOptions
from .picture import picture_page, picture_widget
from .results import DiffusionResult
from .sampling import CanvasStep

__all__ = [
    "CacheAgreement",
    "CanvasOptions",
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
