"""GenARM: the model times a reward model's probabilities."""

from __future__ import annotations

import pytest
import torch

import textguide
from textguide import FeynmanKac
from textguide.guidance import Formula, GenARM, Guidance, Step
from textguide.reference import decoding
from textguide.step.guided_step import guided_log_probs

from ..architectures import Tokenizer, build
from .oracles import INF, oracle, settings


@oracle("genarm")
def genarm(guidance: GenARM, logps: list[list[float]], s: float) -> list[float]:
    assert guidance.beta is not None
    base, reward = logps
    scores = [b if -INF in (b, r) else b + r / guidance.beta for b, r in zip(base, reward, strict=True)]
    return decoding.normalized(scores) if guidance.renormalize else scores


settings(GenARM(beta=None), GenARM(), GenARM("weak", 0.4), GenARM(beta=2.5, renormalize=False))


def test_it_is_the_formula() -> None:
    logp = torch.randn(2, 3, 7).log_softmax(-1)
    logp[0, 0, 2] = logp[1, 1, 3] = -INF
    guided = guided_log_probs(GenARM(beta=0.5), logp, Step())
    torch.testing.assert_close(guided, guided_log_probs(Formula("cond + 2*M('reward')"), logp, Step()))
    assert torch.isneginf(guided[0, 2])
    assert not torch.isneginf(guided[1, 3])


def test_weights_are_those_of_the_product_over_whole_texts() -> None:
    model, reward, prompt = build("llama"), build("llama", 1), [5, 9, 33]
    guidance = [GenARM(beta=2.0), FeynmanKac(particles=2, ess_threshold=0.0)]
    out = textguide.generate(model, Tokenizer(), [prompt], guidance, max_new_tokens=3, models={"reward": reward})
    for row, tokens in enumerate(out.new_tokens):
        product, proposal = 0.0, 0.0
        for index, token in enumerate(tokens):
            read = [*prompt, *tokens[:index]]
            both = (decoding.next_log_probs(one, read) for one in (model, reward))
            scores = [c + r / 2 for c, r in zip(*both, strict=True)]
            product += scores[token]
            proposal += decoding.normalized(scores)[token]
        assert out.log_weights[row].item() == pytest.approx(product - proposal, abs=1e-3)


def test_fields_are_checked() -> None:
    assert Guidance.from_json(GenARM("r", 0.5).to_json()) == GenARM("r", 0.5)
    for fields, message in (
        ({"beta": 0}, "beta=0"),
        ({"beta": -1}, "beta=-1"),
        ({"beta": "x"}, "beta='x'"),
        ({"beta": INF}, "beta=inf"),
        ({"reward_model": ""}, "reward_model=''"),
        ({"renormalize": 1}, "renormalize=1"),
    ):
        with pytest.raises(ValueError, match=message):
            GenARM(**fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'reward' is not among models="):
        textguide.generate(build("llama"), Tokenizer(), [[5, 9]], GenARM(), max_new_tokens=1)
