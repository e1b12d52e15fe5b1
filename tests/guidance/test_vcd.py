"""VCD: the rule and its noise; the captioning room tests it on images."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import textguide
from textguide.guidance import VCD, Guidance, Step
from textguide.guidance.edits import NoisedImage
from textguide.guidance.needs import Need
from textguide.reference import decoding
from textguide.step.guided_step import guided_log_probs

from ..architectures import Tokenizer, build
from .oracles import INF, mixed, oracle, settings


@oracle("vcd")
def vcd(guidance: VCD, logps: list[list[float]], s: float) -> list[float]:
    cond, noised = logps
    scores = mixed(cond, noised, 1 + guidance.alpha)
    least = math.log(guidance.beta) + max(cond) if guidance.beta else -INF
    return decoding.normalized([score if c >= least else -INF for score, c in zip(scores, cond, strict=True)])


settings(VCD(0.0, 0.0))


@pytest.mark.parametrize("guidance", [VCD(), VCD(0.5, 0.0), VCD(2.0, 0.3)])
def test_the_rule_is_the_oracle(guidance: VCD) -> None:
    logits = 2 * torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    logp = logits.log_softmax(-1)
    guided = guided_log_probs(guidance, logp, Step())
    for row in range(3):
        expected = vcd(guidance, logp[:, row].tolist(), 0.0)
        torch.testing.assert_close(guided[row], torch.tensor(expected))
    assert (guided == -INF).any() == (guidance.beta > 0)


def test_noise_grows_as_in_a_diffusion_model() -> None:
    rates = torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64)) * (5e-3 - 1e-5) + 1e-5
    shares = (1 - (1 - rates).cumprod(0)).sqrt()
    for steps in (0, 1, 250, 500, 999):
        assert NoisedImage(steps).share == pytest.approx(float(shares[steps]), rel=1e-9)


def test_text_has_no_image() -> None:
    assert VCD().needs == {Need.IMAGE}
    with pytest.raises(ValueError, match=r"this guidance changes the image, and this run only reads text; use"):
        textguide.generate(build("llama"), Tokenizer(), [[5, 6]], VCD(), max_new_tokens=2)
    with pytest.raises(ValueError, match="changes the image"):
        textguide.score(build("llama"), Tokenizer(), [[5, 6]], [[7]], VCD())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": float("nan")}, "alpha=nan must be a finite number"),
        ({"beta": 1.5}, r"beta=1.5 must be a number in \[0, 1\]"),
        ({"steps": 1000}, "steps=1000 must lie between 0 and 999"),
        ({"steps": 0.5}, "steps=0.5 must be a whole number"),
    ],
)
def test_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VCD(**fields)
    assert Guidance.from_json(VCD().to_json()) == VCD()
