"""Distilling guidance into an adapter, so that plain decoding produces the guided distribution.

AGD (arXiv 2503.07274) trains adapters on guided trajectories for images. This package does it for language models,
with several objectives, on texts from several sources.
"""

from .settings import DistillSettings
from .training import DistillResult, distill

__all__ = ["DistillResult", "DistillSettings", "distill"]
