"""Texts that fork where the distribution has much entropy: budget, shared beginnings, distributions, and plain
decoding without forks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import textguide
from textguide import AWRS, CFG, EAGer, Guidance, guided_decoding

from .architectures import NAMES, Tokenizer, build

PROMPTS = [[5, 9, 33, 7, 20, 41, 8, 12], [11, 4, 52], [30, 31, 5, 6, 44]]
NEW = 10
THRESHOLD = 4.03  # of random models, whose distributions are close to uniform (4.11): some prompts fork, others do not


def run(prompts: Any, guidance: Any = None, name: str = "llama", **options: Any) -> Any:
    options.setdefault("max_new_tokens", NEW)
    return textguide.eager(build(name), Tokenizer(), prompts, guidance, **options)


def plain(prompts: Any, guidance: Any = None, name: str = "llama", **options: Any) -> Any:
    options.setdefault("max_new_tokens", NEW)
    return textguide.generate(build(name), Tokenizer(), prompts, guidance, **options)


def distributions(name: str, guidance: Any, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """The guided log-probabilities of every step of a text, read anew."""
    scores = []
    for index in range(len(tokens)):
        seen: list[Any] = []
        plain(
            [[*prompt, *tokens[:index]]], CFG(1.5, negative_prompt=[prompt[-1], *tokens[:index]]) if guidance else None,
            name, max_new_tokens=1, observer=seen.append,
        )  # fmt: skip
        scores.append(seen[0].guided[0])
    return torch.stack(scores)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("t5", "bart")])
@pytest.mark.parametrize("guidance", [None, CFG(1.5)], ids=str)
def test_texts_fork_within_the_budget_and_share_their_beginnings(name: str, guidance: Any) -> None:
    out = run(PROMPTS, guidance, name, entropy_threshold=0.5, max_branches=4)
    alone = plain(PROMPTS, guidance, name)
    forks = 0
    for prompt, (texts, origins) in enumerate(zip(out.new_tokens, out.origins, strict=True)):
        assert 1 <= len(texts) <= 4
        # The first text is what plain decoding writes.
        assert texts[0] == alone.new_tokens[prompt]
        assert origins[0] is None
        for number, (text, origin) in enumerate(zip(texts[1:], origins[1:], strict=True), start=1):
            forks += 1
            assert origin is not None
            parent, shared = origin
            assert parent < number or origins[parent] is not None
            assert text[:shared] == texts[parent][:shared]
            assert text[shared] != texts[parent][shared]
            assert len(text) == NEW
    assert forks > 0
    assert all(len(set(map(tuple, texts))) == len(texts) for texts in out.new_tokens)
    assert out.tokens == NEW * 3 + sum(NEW - o[1] for origins in out.origins for o in origins if o is not None)


@pytest.mark.parametrize("guidance", [None, CFG(1.5)], ids=str)
def test_forks_are_where_entropy_is_and_go_on_greedily(guidance: Any) -> None:
    threshold = (
        4.025 if guidance is None else 3.985
    )  # of random models, whose distributions are close to uniform (4.11)
    out = run(PROMPTS[:1], guidance, entropy_threshold=threshold, max_branches=64)
    texts, origins = out.new_tokens[0], out.origins[0]
    at = {origin for origin in origins if origin is not None}
    assert 1 < len(texts) < 64
    for number, text in enumerate(texts):
        distribution = distributions("llama", guidance, PROMPTS[0], text)
        entropies = -(distribution.exp() * distribution).sum(-1)
        begin = 0 if origins[number] is None else origins[number][1]
        for step in range(begin, NEW):
            best = distribution[step].argsort(descending=True).tolist()
            # Where it forked off, the second most likely token; then the most likely ones.
            assert text[step] == best[1 if step == begin and origins[number] is not None else 0]
            if step > begin or origins[number] is None:
                assert ((number, step) in at) == (float(entropies[step]) > threshold and step < NEW - 1)
        assert out.log_likelihoods[0][number] == pytest.approx(
            sum(float(distribution[step, token]) for step, token in enumerate(text)), abs=1e-3
        )


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba", "t5"])
@pytest.mark.parametrize("guidance", [None, CFG(1.5)], ids=str)
def test_without_forks_it_is_plain_decoding(name: str, guidance: Any) -> None:
    for options in ({}, {"temperature": 0.8, "seed": 3}):
        prompts = PROMPTS[:1] if options else PROMPTS
        alone = plain(prompts, guidance, name, **options)
        for settings in ({"entropy_threshold": 99.0, "max_branches": 4}, {"max_branches": 1}):
            out = run(prompts, guidance, name, **settings, **options)
            assert [texts[0] for texts in out.new_tokens] == alone.new_tokens
            assert [len(texts) for texts in out.new_tokens] == [1] * len(prompts)
            size = settings["max_branches"]
            assert size > 1 or torch.equal(out.result.log_probs, alone.log_probs)
            torch.testing.assert_close(out.result.log_probs[::size], alone.log_probs, atol=1e-4, rtol=1e-5)


def test_samples_texts_that_end_and_batches() -> None:
    options: dict[str, Any] = {"entropy_threshold": 0.3, "max_branches": 6, "temperature": 1.0, "seed": 0}
    out = run(PROMPTS, CFG(1.5), eos_token_id=list(range(3, 25)), **options)
    assert any(len(text) < NEW for texts in out.new_tokens for text in texts)
    for texts, origins in zip(out.new_tokens, out.origins, strict=True):
        for text, origin in zip(texts, origins, strict=True):
            assert not any(3 <= token < 25 for token in text[:-1])
            assert origin is None or text[: origin[1]] == texts[origin[0]][: origin[1]]
    greedy = {"entropy_threshold": 0.5, "max_branches": 3}
    together = run(PROMPTS, CFG(1.5), **greedy)
    parts = run(PROMPTS, CFG(1.5), batch_size=2, **greedy)
    assert parts.new_tokens == together.new_tokens
    assert parts.origins == together.origins
    fast = run(PROMPTS, CFG(1.5), speculation="recycling", **greedy)
    assert fast.new_tokens == together.new_tokens
    assert fast.origins == together.origins


def test_as_a_guidance() -> None:
    guidance = [CFG(1.5), EAGer(0.5, 4)]
    out = plain(PROMPTS[:1], guidance)
    assert len(out.texts) == 4
    assert out.log_weights is None
    assert out.origins is not None
    assert [bool(used) for used in out.finished] == [death is None for death in out.deaths]
    with pytest.raises(ValueError, match="max_branches=4 needs that many rows of each prompt"):
        build("llama").generate(torch.tensor([PROMPTS[0]]), custom_generate=guided_decoding(guidance), max_new_tokens=2)
    ids = build("llama").generate(
        torch.tensor([PROMPTS[0]]), custom_generate=guided_decoding(guidance), max_new_tokens=4, do_sample=True,
        num_return_sequences=4,
    )  # fmt: skip
    assert ids.shape == (4, len(PROMPTS[0]) + 4)
    assert Guidance.from_json(EAGer().to_json()) == EAGer()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entropy_threshold": -1}, "entropy_threshold=-1"),
        ({"max_branches": 0}, "max_branches=0"),
        ({"guidance": AWRS("regex:a+")}, "two guidances with a constraint"),
    ],
    ids=str,
)
def test_bad_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(PROMPTS, **options)


def test_a_budget_moves_unused_texts_to_prompts_that_hesitate() -> None:
    """Prompts that used all of their texts share those that others left."""
    settings: dict[str, Any] = {"entropy_threshold": THRESHOLD, "max_branches": 3}
    before = run(PROMPTS, **settings)
    used = [len(texts) for texts in before.new_tokens]
    assert min(used) < 3
    assert 3 in used  # some hesitate, and others do not
    after = run(PROMPTS, **settings, budget=9)
    counts = [len(texts) for texts in after.new_tokens]
    assert sum(used) < sum(counts) <= 9
    full = [number for number, count in enumerate(used) if count == 3]
    each, rest = divmod(9 - sum(used), len(full))
    for number, (count, texts) in enumerate(zip(counts, after.new_tokens, strict=True)):
        if number in full:
            limit = 3 + each + (full.index(number) < rest)
            alone = run([PROMPTS[number]], entropy_threshold=THRESHOLD, max_branches=limit)
            assert count <= limit
            assert texts == alone.new_tokens[0]
            assert after.origins[number] == alone.origins[0]
            assert after.log_likelihoods[number] == pytest.approx(alone.log_likelihoods[0], abs=1e-4)
        else:
            assert texts == before.new_tokens[number]
    assert after.tokens > before.tokens  # the second stage is counted


@pytest.mark.parametrize(("threshold", "limit"), [(99.0, 3), (0.0, 3), (4.0, 1)])
def test_a_budget_that_nobody_needs_changes_nothing(threshold: float, limit: int) -> None:
    """Nobody forks; everybody uses all texts; one text per prompt and a budget for that."""
    settings: dict[str, Any] = {"entropy_threshold": threshold, "max_branches": limit}
    before = run(PROMPTS, **settings)
    after = run(PROMPTS, **settings, budget=len(PROMPTS) * limit)
    assert after.new_tokens == before.new_tokens
    assert after.tokens == before.tokens


@pytest.mark.parametrize("budget", range(3, 10))
def test_a_budget_is_never_exceeded(budget: int) -> None:
    out = run(PROMPTS, CFG(1.5), entropy_threshold=3.9, max_branches=4, budget=budget)
    assert 3 <= sum(map(len, out.new_tokens)) <= budget


def test_what_a_budget_refuses() -> None:
    with pytest.raises(ValueError, match=r"budget=2 must be .*3"):
        run(PROMPTS, budget=2)
    with pytest.raises(ValueError, match="budget= needs one seed"):
        run(PROMPTS, budget=9, seed=[1, 2, 3], temperature=1.0)
    with pytest.raises(ValueError, match="one negative prompt or context for all prompts"):
        run(PROMPTS, CFG(1.5, negative_prompt=[[1], [2], [3]]), budget=9)
