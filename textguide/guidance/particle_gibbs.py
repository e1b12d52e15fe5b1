"""Particle Gibbs and sequential Monte Carlo on canvases of masks (PG-DLM, arXiv 2507.08390)."""

from __future__ import annotations

from dataclasses import dataclass

from ..support.checks import finite_number, whole_number
from .base import About
from .canvas_guidance import CanvasGuidance


@dataclass(frozen=True)
class ParticleGibbs(CanvasGuidance):
    """Draw whole texts in proportion to ``p(x) · f(y | x)^weight``, by canvases that are filled side by side.

    ``particles`` canvases a prompt are filled by the sampler as it is, with whatever other guidance there is. Behind
    each step ``f`` judges every canvas with its masks filled by that step's draws, canvas ``t`` is weighed by
    ``(f_t / f_{t−1})^weight``, and canvases are resampled by their weights: sequential Monte Carlo, from which one text
    a prompt is drawn by the weights. With ``iterations`` above 1 the whole run is repeated beside the trajectory that
    was drawn last, which is kept (conditional SMC; Algorithm 1 of the paper): particle Gibbs, a Markov chain over
    trajectories that leaves ``p(x) f(y|x)^weight`` unchanged for any number of particles from 2 on and comes to it as
    iterations grow. ``p(x)`` is what the sampler draws without this guidance, its order and its steps included, so
    that a ``temperature`` above 0 is needed.

    ``weight`` is the paper's 1/β. The result's ``log_weights`` are ``log Σ_k w_k / particles`` of the first iteration,
    whose exponential is an unbiased estimate of ``E_p[f^weight]``.

    Args:
        predictor, target, weight: see :class:`CanvasGuidance`.
        particles: canvases a prompt, K.
        iterations: runs, m; 1: sequential Monte Carlo alone.
        ess_threshold: resample where the effective sample size falls below this share of K; 1: at every step, as in the
            paper; 0: never.

    Costs ``particles`` rows a prompt, ``iterations`` times the passes, and a call of the predictor a canvas and step.

    Raises:
        ValueError: a field has a value that cannot work; the message names it.
    """

    particles: int = 8
    iterations: int = 1
    ess_threshold: float = 0.5

    name = "particle-gibbs"
    about = About(
        "2507.08390", "texts in proportion to p(x) f(y|x)^w, by resampled canvases",
        "`particles` rows a prompt, `iterations` times", "w = 0",
        "samples of a reward-weighted model, with weights",
        "particle-gibbs:predictor=sentiment,target=positive,particles=4",
        compared="it fills canvases",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("particles", self.particles, 2)
        whole_number("iterations", self.iterations, 1)
        self._put(ess_threshold=finite_number("ess_threshold", self.ess_threshold))
        if not 0.0 <= self.ess_threshold <= 1.0:
            raise ValueError(f"ess_threshold={self.ess_threshold} must lie in [0, 1]; 1 resamples at every step")
