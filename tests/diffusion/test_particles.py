"""SMC and particle Gibbs on canvases: weights and texts follow an enumeration, and wrong versions are seen to fail."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from typing import Any

import pytest
import torch

from textguide import ACFG, CAIF, CFG, diffusion
from textguide.diffusion import denoiser, particles
from textguide.guidance import ParticleGibbs
from textguide.reference import diffusion as reference

from . import tiny
from .test_candidates import TONE
from .test_generation import allowed, p_value, written
from .test_predictors import CANVAS, judge_of

SMC = ParticleGibbs(CANVAS, "high", 1.5, particles=2, ess_threshold=1.0)
GIBBS = ParticleGibbs(CANVAS, "high", 1.5, particles=2, iterations=12, ess_threshold=1.0)
ROWS = 300
OPTIONS: dict[str, Any] = {"gen_length": 3, "temperature": 1.0, "order": "random", "seed": 5, "early_end": False}


def run(guidance: Any, rows: int, **options: Any) -> diffusion.DiffusionResult:
    return diffusion.generate(
        *tiny.small(3), ["ab"] * rows, guidance=guidance, allowed=allowed(3), **{**OPTIONS, **options}
    )


@lru_cache(maxsize=1)
def plain() -> dict[Any, float]:
    made = denoiser(*tiny.small(3))
    read = lru_cache(maxsize=None)(reference.reader(made.model, range(5)))
    return reference.sampling_distribution(lambda ids: read(tuple(ids)), [5, 6], tiny.MASK, 3, None, "random")


def weighed(guidance: Any) -> dict[Any, float]:
    """``p(x) f(x)^w``, not normalised."""
    judge = judge_of(guidance, denoiser(*tiny.small(3)), 2)
    return {x: p * math.exp(guidance.weight * judge([5, 6, *x])) for x, p in plain().items()}


def distance(found: diffusion.DiffusionResult, expected: dict[Any, float]) -> float:
    """How many standard errors ``exp(log_weights) [x]`` lies from ``p(x) f(x)^w``, at most."""
    assert found.log_weights is not None
    weights = found.log_weights.exp()
    worst = abs(float(weights.mean()) - sum(expected.values())) / float(weights.std() / len(weights) ** 0.5)
    for text, value in expected.items():
        if value * len(weights) < 25:
            continue
        hits = weights * torch.tensor([tuple(written(found, row)) == text for row in range(len(weights))])
        worst = max(worst, abs(float(hits.mean()) - value) / float(hits.std() / len(weights) ** 0.5))
    return worst


@pytest.mark.parametrize("threshold", [1.0, 0.6])
def test_weights_and_texts_together_are_unbiased(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """``E[Ẑ φ(x)] = Σ p(x) f(x)^w φ(x)`` for any number of particles."""
    guidance = ParticleGibbs(CANVAS, "high", 1.5, particles=2, ess_threshold=threshold)
    expected, found = weighed(guidance), run(guidance, 1000)
    assert distance(found, expected) < 4
    # Seen to fail: draws that forget the weights, and another power.
    assert distance(found, weighed(ParticleGibbs(CANVAS, "high", 0.5))) > 8
    monkeypatch.setattr(particles, "normalized", lambda weights: torch.full_like(weights, 1 / weights.shape[1]))
    assert distance(run(guidance, 1000), expected) > 6


def test_particle_gibbs_comes_to_the_weighed_distribution() -> None:
    expected = weighed(GIBBS)
    total = sum(expected.values())
    target = {text: value / total for text, value in expected.items()}
    found = run(GIBBS, ROWS)
    drawn = Counter(tuple(written(found, row)) for row in range(ROWS))
    assert p_value(drawn, target) > 1e-3
    assert p_value(drawn, plain()) < 1e-6
    once = run(SMC, ROWS)  # two particles alone are far from it
    assert p_value(Counter(tuple(written(once, row)) for row in range(ROWS)), target) < 1e-3


def test_with_other_guidance_infilling_and_bad_settings() -> None:
    model, words = tiny.build("llada")
    guidance = [CFG(1.5), CAIF(TONE, "high", 1.0, top_k=4), ParticleGibbs(TONE, "high", 2.0, particles=3, iterations=2)]
    options: dict[str, Any] = {"gen_length": 4, "temperature": 1.0, "seed": 1, "block_length": 2}
    first, again = (diffusion.generate(model, words, ["ab", "l"], guidance=guidance, **options) for _ in range(2))
    assert torch.equal(first.sequences, again.sequences)
    assert first.sequences.shape[0] == len(first.steps) == 2
    assert first.log_weights is not None
    assert first.log_weights.shape == (2,)
    assert first.effect.classified_texts > 0
    masks = diffusion.infill(model, words, "a[MASK]b[MASK]", guidance=guidance[2], temperature=1.0, seed=0)
    assert masks.texts[0][0] == "a"
    only = torch.zeros(2, 4, tiny.VOCABULARY, dtype=torch.bool)
    only[0, :, 6], only[1, :, 7] = True, True
    fixed = diffusion.generate(model, words, ["ab", "l"], guidance=guidance[2], allowed=only, **options)
    assert fixed.texts == ["bbbb", "cccc"]
    for one, changes, message in (
        (guidance[2], {"temperature": 0.0}, "temperature=0 fills every canvas alike"),
        (guidance[2], {"cache": True}, "cache=True remembers rows"),
        (guidance[2], {"sampler": "klass"}, "sampler='klass' remembers rows"),
        (guidance[2], {"seed": [1]}, "drawn together; give one number"),
        (guidance[2], {"constraint": "regex:a+"}, "constraint= draws whole texts that satisfy it"),
        ([ACFG(2.0, one_pass=True), guidance[2]], {}, "one_pass=True"),
        (guidance[2], {"keep_history": True}, "keep_history=True"),
        ([guidance[2], ParticleGibbs(TONE, "low")], {}, "two guidances with a predictor of canvases"),
    ):
        with pytest.raises(ValueError, match=message):
            diffusion.generate(model, words, "ab", guidance=one, **{**options, **changes})
    with pytest.raises(ValueError, match="fills several canvases side by side"):
        diffusion.stream(model, words, "ab", guidance=guidance[2])
    with pytest.raises(ValueError, match="fills several canvases side by side"):
        diffusion.score(model, words, "ab", "cd", guidance=guidance[2])
