"""Guidance away from a token prior, and the prior as a value and a file."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import textguide
from textguide.guidance import CFG, Guidance, Step, TokenPrior
from textguide.guidance.priors import Prior, PriorFile, SparsePrior, log_probs
from textguide.step.guided_step import guided_log_probs

from ..architectures import VOCAB, Tokenizer, build
from .oracles import settings

NAMED = {3: 0.3, 5: 0.2, 8: 0.05, 0: 0.01}
"""Probabilities of some tokens, which fit the vocabularies of all tests: they have 11 tokens and more."""
ONE = {0: 0.3}
"""Fits any vocabulary: checks of a rule use two tokens and more."""
IDS = [5, 9, 33, 7]

settings(
    TokenPrior(1.0, prior=ONE),
    TokenPrior(1.7, prior=ONE),
    TokenPrior(1.6, prior=ONE, share=0.4),
    TokenPrior(2.0, prior=ONE, schedule="linear", start=0.3, stop=0.8),
    TokenPrior(0.6, prior=ONE, share=0.7, negative_prompt=[9, 9, 6, 3], renormalize=False),
    TokenPrior(1.5, prior=ONE, share=0.0),
)


def random_prior(size: int = VOCAB, seed: int = 0) -> Prior:
    generator = torch.Generator().manual_seed(seed)
    return Prior(torch.randn(size, generator=generator).log_softmax(-1), "tiny", 7, 90)


def test_it_is_a_temperature_and_a_bias_without_an_extra_pass() -> None:
    logits = 3 * torch.randn(4, VOCAB)
    prior = random_prior()
    for scale in (0.5, 1.5, 3.0):
        guidance = TokenPrior(scale, prior=prior)
        assert guidance.branches == ()
        guided = guided_log_probs(guidance, logits.log_softmax(-1)[None], Step())
        expected = ((logits + (1 - scale) / scale * prior.log_probs) * scale).log_softmax(-1)
        torch.testing.assert_close(guided, expected)


def test_share_is_the_weight_of_the_prior_in_the_other_branch() -> None:
    logp = torch.randn(2, 3, VOCAB).log_softmax(-1)
    prior = random_prior()
    for share in (0.25, 0.9):
        mixed = share * prior.log_probs + (1 - share) * logp[1]
        expected = (mixed + 1.8 * (logp[0] - mixed)).log_softmax(-1)
        guidance = TokenPrior(1.8, prior=prior, share=share)
        torch.testing.assert_close(guided_log_probs(guidance, logp, Step()), expected)
    without = guided_log_probs(TokenPrior(1.8, prior=prior, share=0.0), logp, Step())
    assert torch.equal(without, guided_log_probs(CFG(1.8), logp, Step()))


def test_forbidden_tokens_stay_forbidden_and_the_others_keep_their_places() -> None:
    logp = torch.randn(1, 1, 11).index_fill(-1, torch.tensor([4]), float("-inf")).log_softmax(-1)
    guided = guided_log_probs(TokenPrior(2.0, prior=NAMED), logp, Step())[0]
    prior = log_probs(SparsePrior(tuple(NAMED.items())), 11)
    assert guided[4] == float("-inf")
    assert guided[8] - guided[3] == pytest.approx(
        float(2 * (logp[0, 0, 8] - logp[0, 0, 3]) - (prior[8] - prior[3])), abs=1e-5
    )


def test_rows_with_other_scales_share_a_step_and_rows_with_another_prior_do_not() -> None:
    one, other = TokenPrior(1.5, prior=NAMED), TokenPrior(1.5, prior={3: 0.1})
    assert one.rule == dataclasses.replace(one, scale=3.0).rule
    assert one.rule != other.rule
    assert one.rule != dataclasses.replace(one, share=0.5).rule


def test_a_run_costs_no_pass_and_differs_from_plain() -> None:
    model, prompts = build("llama"), [IDS, [8], [30, 31, 5, 6, 44, 2]]
    guidance = TokenPrior(3.0, prior=random_prior())
    out = textguide.generate(model, Tokenizer(), prompts, guidance, max_new_tokens=6)
    plain = textguide.generate(model, Tokenizer(), prompts, max_new_tokens=6)
    assert out.new_tokens != plain.new_tokens
    assert out.effect.extra_passes == 0
    scored = textguide.score(model, Tokenizer(), prompts, out.new_tokens, guidance, horizon=6)
    torch.testing.assert_close(scored.log_likelihood[0], out.log_likelihood, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options",
    [{"speculation": "prompt-lookup"}, {"cache_implementation": "static"}, {"batch_size": 1}],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_options_of_a_run_change_nothing(share: float, options: dict[str, Any]) -> None:
    model, prompts = build("llama"), [IDS, [5, 9, 5, 9, 5], [8]]
    guidance = TokenPrior(2.0, prior=random_prior(), share=share)
    expected = textguide.generate(model, Tokenizer(), prompts, guidance, max_new_tokens=9).new_tokens
    other = textguide.generate(model, Tokenizer(), prompts, guidance, max_new_tokens=9, **options).new_tokens
    assert other == expected


def test_scales_with_a_constant_branch_are_scored_side_by_side() -> None:
    model, context, text = build("llama"), [IDS, IDS[:2]], [[8, 12, 4], [7, 7]]
    guidance = TokenPrior(1.5, prior=random_prior())
    together = textguide.score(model, Tokenizer(), context, text, guidance, scales=[1.0, 2.0])
    for number, one in enumerate((None, dataclasses.replace(guidance, scale=2.0))):
        alone = textguide.score(model, Tokenizer(), context, text, one)
        torch.testing.assert_close(together.log_likelihood[number], alone.log_likelihood[0])
    mixed = textguide.score(model, Tokenizer(), context, text, settings=[guidance, CFG(1.5), None])
    for number, one in enumerate((guidance, CFG(1.5), None)):
        alone = textguide.score(model, Tokenizer(), context, text, one)
        torch.testing.assert_close(mixed.log_likelihood[number], alone.log_likelihood[0])


def test_files(tmp_path: Path) -> None:
    model, prior = build("llama"), random_prior()
    saved = prior.save(tmp_path / "P.safetensors")
    loaded = Prior.load(tmp_path / "P.safetensors")
    assert loaded == saved == prior
    assert (loaded.model_name, loaded.texts, loaded.tokens) == ("tiny", 7, 90)
    texts = [
        textguide.generate(model, Tokenizer(), [IDS], guidance, max_new_tokens=6).new_tokens
        for guidance in (
            TokenPrior(3.0, prior=prior),
            TokenPrior(3.0, prior=saved),
            TokenPrior(3.0, prior=tmp_path / "P.safetensors"),
            f"token-prior:scale=3,prior={tmp_path / 'P.safetensors'}",
            Guidance.from_json(TokenPrior(3.0, prior=saved).to_json()),
        )
    ]
    assert texts == [texts[0]] * 5
    assert TokenPrior(prior=saved).prior == PriorFile(str(tmp_path / "P.safetensors"), prior.fingerprint)
    assert TokenPrior(prior=NAMED) == Guidance.from_json(TokenPrior(prior=NAMED).to_json())
    random_prior(seed=1).save(tmp_path / "P.safetensors")
    with pytest.raises(ValueError, match="has been trained again since"):
        textguide.generate(model, Tokenizer(), [IDS], TokenPrior(prior=saved), max_new_tokens=2)
    half = prior.save(tmp_path / "H.safetensors", torch.float16)
    assert Prior.load(tmp_path / "H.safetensors") == half
    torch.testing.assert_close(half.log_probs, prior.log_probs, atol=0.01, rtol=0)
    assert float(half.log_probs.double().logsumexp(-1)) == pytest.approx(0.0, abs=1e-6)


def test_files_that_are_no_priors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged"):
        Prior.load(tmp_path / "a.safetensors")
    save_file({"log_probs": torch.zeros(3)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="is not a token prior of this version"):
        Prior.load(tmp_path / "b.safetensors")
    metadata = {"format": "textguide token prior", "version": "1"}
    for values in (torch.full((3,), math.nan), torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)):
        save_file({"log_probs": values}, tmp_path / "c.safetensors", metadata)
        with pytest.raises(ValueError, match="has values that are not finite numbers"):
            Prior.load(tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"is not a file; train one with 'textguide prior train TEXTS"):
        Prior.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"must end with \.safetensors"):
        random_prior().save(tmp_path / "prior.bin")


def test_a_prior_of_another_vocabulary_is_refused_by_name() -> None:
    model = build("llama")
    with pytest.raises(ValueError, match=rf"belongs to tiny \(9 tokens\), and this model has {VOCAB} tokens"):
        textguide.generate(model, Tokenizer(), [IDS], TokenPrior(prior=random_prior(9)), max_new_tokens=2)
    with pytest.raises(ValueError, match=r"names token 900 .* and the model has"):
        textguide.generate(model, Tokenizer(), [IDS], TokenPrior(prior={900: 0.1}), max_new_tokens=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prior": None}, "prior=None must be the name of a bundled prior"),
        ({"prior": ""}, "prior='' must be the name"),
        ({"prior": {}}, "prior must name at least one token"),
        ({"prior": {1: 1.5}}, "prior=1.5 for token 1 must be a probability"),
        ({"prior": {-1: 0.5}}, "prior names token -1"),
        ({"prior": {"x": 0.5}}, "prior names token 'x'"),
        ({"prior": {1: 0.5, 2: 0.5}}, "leave nothing for the other tokens"),
        ({"prior": {1: 0.2, "1": 0.2}}, "each token once"),
        ({"prior": {"file": None, "fingerprint": "a"}}, "is not saved in a file"),
        ({"share": 1.5}, r"share=1\.5 must be a number in \[0, 1\]"),
        ({"negative_prompt": "x"}, "share=1 uses no other branch than the prior"),
        ({"negative_system": "x"}, "share=1 uses no other branch than the prior"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenPrior(**{"prior": NAMED, **fields})


def test_the_numbers_of_a_prior_are_checked() -> None:
    for values in (torch.zeros(2, 3), torch.tensor([0.0, float("-inf")]), torch.zeros(1)):
        with pytest.raises(ValueError, match="must be a vector of finite numbers"):
            Prior(values)
