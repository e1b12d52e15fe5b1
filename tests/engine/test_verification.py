"""`verify=n`: steps of a run are read again without cache, padding or batching, and a broken cache is noticed."""

from __future__ import annotations

import copy
import json
import warnings
from typing import Any

import pytest
import torch

import textguide
from textguide import CFG
from textguide.batch.settings import Settings
from textguide.forward.growing_cache import Buffer
from textguide.step.effect import Effect, Verification, join
from textguide.support.errors import VerificationWarning

from ..architectures import Tokenizer, build

PROMPTS = [[5, 9, 33, 7, 20, 41, 8, 12, 17], [11, 4, 52], [30]]
GUIDANCE = CFG(1.5, negative_prompt=[[17, 18, 19], [9, 9, 25, 7, 7, 13], [50]])
EXACT = 5e-4  # nats; T5 has logits around 60, whose rounding differs between processors


def _run(model: Any, guidance: Any = GUIDANCE, prompts: Any = PROMPTS, **options: Any) -> Verification:
    """The verification of a run, in which warnings about it are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", VerificationWarning)
        options = {"max_new_tokens": 8, "verify": 8, **options}
        result = textguide.generate(model, Tokenizer(), prompts, guidance, **options)
    assert result.effect.verification is not None
    return result.effect.verification


@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom", "mamba", "t5"])
def test_an_exact_run_has_no_difference(name: str) -> None:
    verification = _run(build(name))
    assert verification.steps == 8
    assert verification.distribution < EXACT
    assert 0 < verification.tolerance < 0.01


@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom", "mamba", "t5"])
def test_the_rounding_of_bfloat16_is_within_its_tolerance(name: str) -> None:
    model = copy.deepcopy(build(name)).to(torch.bfloat16)
    verification = _run(model, verify=24)
    assert verification.branches <= verification.tolerance < 5


@pytest.mark.parametrize(
    "guidance",
    [None, "cfg:scale=2,schedule=cosine,start=0.3,stop=0.8", "apg:scale=2", "dola", "nag"],
    ids=str,
)
def test_every_step_is_read_as_the_guidance_says(guidance: Any) -> None:
    verification = _run(build("llama"), guidance, verify=24)
    assert verification.steps == 24
    assert verification.distribution < EXACT


def test_sampling_copies_and_batches_are_read_row_by_row() -> None:
    options: dict[str, Any] = {"temperature": 1.3, "num_return_sequences": 2, "batch_size": 2, "seed": 3}
    assert _run(build("llama"), verify=48, **options).distribution < EXACT
    assert _run(build("bart"), verify=48, **options).distribution < EXACT


def test_speculation_and_constraints_are_verified() -> None:
    assert _run(build("llama"), verify=24, speculation="prompt-lookup").distribution < EXACT
    assert _run(build("llama"), [CFG(1.5), textguide.FeynmanKac(particles=3)], verify=24, seed=0).distribution < EXACT


def test_the_draws_of_a_run_stay_the_same() -> None:
    options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0}
    texts = []
    for verify in (0, 4):
        torch.manual_seed(0)
        result = textguide.generate(build("llama"), Tokenizer(), PROMPTS, GUIDANCE, verify=verify, **options)
        texts.append(result.new_tokens)
    assert texts[0] == texts[1]


def _break(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Let caches lose the position before the newest one, or contain its neighbour twice."""
    append = Buffer.append

    def broken(buffer: Buffer, new: torch.Tensor) -> torch.Tensor:
        states = append(buffer, new).clone()
        states[..., -2, :] = 0.0 if fault == "lost" else states[..., -3, :]
        return states

    monkeypatch.setattr(Buffer, "append", broken)


@pytest.mark.parametrize("fault", ["lost", "twice"])
def test_a_broken_cache_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _break(monkeypatch, fault)
    model = build("llama")
    with pytest.warns(VerificationWarning, match=r"row \d, token \d of LlamaForCausalLM differs"):
        result = textguide.generate(model, Tokenizer(), PROMPTS, GUIDANCE, max_new_tokens=8, verify=8)
    verification = result.effect.verification
    assert verification is not None
    assert not verification.holds
    assert verification.branches > 100 * verification.tolerance
    with pytest.warns(VerificationWarning):
        list(textguide.stream(model, Tokenizer(), "abc def", CFG(1.5), max_new_tokens=8, verify=8))


def test_custom_generate_reports_it_and_refuses_what_it_cannot_read() -> None:
    model = build("llama")
    ids = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    decoding = textguide.guided_decoding(CFG(2.0), verify=5)
    model.generate(ids, attention_mask=mask, custom_generate=decoding, max_new_tokens=6)
    assert decoding.effect is not None
    assert decoding.effect.verification is not None
    assert decoding.effect.verification.steps == 5
    assert decoding.effect.verification.distribution < EXACT
    positions = torch.tensor([[1, 1, 7, 8], [0, 1, 2, 3]])
    with pytest.raises(ValueError, match="position_ids="):
        model.generate(ids, attention_mask=mask, position_ids=positions, custom_generate=decoding, max_new_tokens=2)
    with pytest.raises(ValueError, match="verify= reads the source of an encoder-decoder again"):
        build("t5").generate(ids, attention_mask=mask, custom_generate=decoding, max_new_tokens=2)


def test_what_cannot_be_verified_is_refused_by_name() -> None:
    model = build("llama")
    with pytest.raises(ValueError, match="verify= reads rows one by one, and 'corrsynth'"):
        textguide.generate(model, Tokenizer(), PROMPTS[:2], "corrsynth:scale=2", max_new_tokens=2, verify=1)
    with pytest.raises(ValueError, match="verify=-1 must be"):
        textguide.generate(model, Tokenizer(), PROMPTS, None, max_new_tokens=2, verify=-1)
    with pytest.raises(ValueError, match="verify= is no option of a row"):
        Settings(options={"verify": 8})


def test_effects_with_a_verification_are_joined_and_become_json() -> None:
    one = Effect(guided_steps=2, verification=Verification(3, 0.1, 0.2, 0.3, 0.5))
    other = Effect(guided_steps=2, verification=Verification(2, 0.2, 0.1, 0.1, 0.4))
    together = join([one, Effect(), other])
    assert together.verification == Verification(5, 0.2, 0.2, 0.3, 0.5)
    assert json.loads(json.dumps(together.to_dict()))["verification"]["steps"] == 5
    assert "5 steps verified" in str(together)
    assert "verification" not in Effect().to_dict()
    assert not Verification(1, branches=float("nan")).holds
