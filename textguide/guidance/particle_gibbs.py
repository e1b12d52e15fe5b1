"""Particle Gibbs and sequential Monte Carlo on canvases of masks (PG-DLM, arXiv 2507.08390)."""

from __future__ import annotations

from dataclasses import dataclass

from ..support.checks import share, whole_number
from .base import About
from .canvas_guidance import CanvasGuidance


@dataclass(frozen=True)
class ParticleGibbs(CanvasGuidance):
    """Draw whole texts in proportion to ``p(x) · f(y | x)^weight``, from canvases that are filled side by side.

    ``particles`` canvases per prompt are filled by the sampler, together with any other guidance. After each step,
    ``f`` evaluates every canvas with its masks filled by that step's draws, canvas ``t`` gets the weight
    ``(f_t / f_{t−1})^weight``, and canvases are resampled by their weights. This is sequential Monte Carlo; one text
    per prompt is drawn by the final weights. With ``iterations`` above 1, the whole run is repeated alongside the
    trajectory that was drawn last, which is kept (conditional SMC; Algorithm 1 of the paper). The result is particle
    Gibbs, a Markov chain over trajectories that leaves ``p(x) f(y|x)^weight`` unchanged for two or more particles, and
    converges to it with more iterations. ``p(x)`` is what the sampler draws without this guidance, including its order
    and its steps, so a ``temperature`` above 0 is required.

    ``weight`` is the paper's 1/β. The result's ``log_weights`` are ``log Σ_k w_k / particles`` of the first iteration,
    whose exponential is an unbiased estimate of ``E_p[f^weight]``.

    Args:
        predictor, target, weight: see :class:`CanvasGuidance`.
        particles: number of canvases per prompt, K.
        iterations: number of runs, m. 1: only sequential Monte Carlo.
        ess_threshold: resample if the effective sample size falls below this share of K. 1: at every step, as in the
            paper. 0: never.

    Costs ``particles`` rows per prompt, ``iterations`` times the passes, and a call of the predictor per canvas and
    step.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    particles: int = 8
    iterations: int = 1
    ess_threshold: float = 0.5

    name = "particle-gibbs"
    about = About(
        paper="2507.08390",
        rule="texts in proportion to p(x) f(y|x)^w, by resampling canvases",
        passes="`particles` rows per prompt, `iterations` times",
        neutral="w = 0",
        helps="weighted samples from a model that is tilted by a reward",
        example="particle-gibbs:predictor=sentiment,target=positive,particles=4",
        compared="it fills canvases",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("particles", self.particles, 2)
        whole_number("iterations", self.iterations, 1)
        self._put(ess_threshold=share("ess_threshold", self.ess_threshold, "1 resamples at every step"))
