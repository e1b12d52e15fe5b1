"""Guidance distilled into an adapter: the guided distribution at the price of plain decoding.

AGD (arXiv 2503.07274) trains adapters on guided trajectories for images; here it is done for language models, with
several objectives, on texts of several origins.
"""

from .settings import DistillSettings
from .training import DistillResult, distill

__all__ = ["DistillResult", "DistillSettings", "distill"]
