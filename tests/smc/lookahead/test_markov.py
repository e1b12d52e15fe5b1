"""A hidden Markov model times an automaton, against the sum over all texts; and its training."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import textguide
from textguide.constraints import Regex, Vocabulary
from textguide.constraints.automata import automaton_of
from textguide.guidance import AWRS
from textguide.reference import smc as reference
from textguide.smc.lookahead import Ahead, Lookahead, lookahead_of, training
from textguide.smc.lookahead.hidden_markov import HiddenMarkov, load
from textguide.smc.lookahead.markov import MarkovLookahead
from textguide.support import array_cache

from ...architectures import EOS, Tokenizer, build
from ..statistics import z_score
from ..table import floats, run, table
from ..test_engine import LETTERS
from ..toys import END, PIECES, VOCABULARY

SIZE = len(PIECES)
LENGTH = 4
PATTERN = "(ab|ca)*b|c[ab]{2}"


def random_model(seed: int, states: int = 3) -> HiddenMarkov:
    generator = torch.Generator().manual_seed(seed)

    def rows(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).softmax(-1)

    return HiddenMarkov(rows(states), rows(states, states), rows(states, SIZE))


def becomes(model: HiddenMarkov, text: tuple[int, ...], left: int) -> float:
    """P(the text goes on to a member and an end token, within ``left`` tokens | its tokens), by enumeration."""

    @cache
    def likelihood(text: tuple[int, ...]) -> float:
        return math.exp(model.log_likelihood(text))

    def ways(text: tuple[int, ...], left: int) -> float:
        if left == 0:
            return 0.0
        spelled = b"".join(PIECES[token] for token in text).decode()
        total = likelihood((*text, END)) if SIZE - 1 not in text and re.fullmatch(PATTERN, spelled) else 0.0
        return total + sum(ways((*text, token), left - 1) for token in range(1, SIZE - 1))

    return ways(text, left) / likelihood(text)


@pytest.mark.parametrize("text", [(), (1,), (4, 6), (3, 1)])
def test_potentials_are_what_the_texts_sum_to(text: tuple[int, ...]) -> None:
    model = random_model(1)
    automaton = automaton_of(Regex(PATTERN), VOCABULARY)
    assert automaton is not None
    lookahead = MarkovLookahead(automaton, model)
    ahead = lookahead.begin(())
    for token in text:
        ahead = ahead.after(token)
    for left in (1, 2, 3):
        found = ahead.following(left)
        assert found is not None
        assert found[END] == 0
        for token in range(1, SIZE):
            expected = becomes(model, (*text, token), left) if token < SIZE - 1 else 0.0
            assert found[token].exp().item() == pytest.approx(expected, rel=1e-4, abs=1e-30), (token, left)


def test_particles_in_one_state_share_what_does_not_depend_on_their_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    automaton = automaton_of(Regex("[abc]{3,9}"), VOCABULARY)
    assert automaton is not None
    lookahead, asked = MarkovLookahead(automaton, random_model(1)), []
    values = lookahead.values
    monkeypatch.setattr(lookahead, "values", lambda left: asked.append(left) or values(left))
    found = [lookahead.begin(prompt).after(1).following(2) for prompt in ([1], [2], [3], [3])]
    assert asked == [2]
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])


def test_tiny_probabilities_keep_their_logarithms() -> None:
    automaton = automaton_of(Regex("(ab){60}"), VOCABULARY)
    assert automaton is not None
    emission = torch.full((2, SIZE), 1e-4)
    emission[:, END] = 1 - 1e-4 * (SIZE - 1)
    model = HiddenMarkov(torch.tensor([0.5, 0.5]), torch.full((2, 2), 0.5), emission)
    found = MarkovLookahead(automaton, model).begin(()).following(70)
    assert found is not None
    assert found[4] == pytest.approx(59 * math.log(1e-4), rel=0.02)


def test_any_hidden_markov_model_leaves_the_evidence_unbiased() -> None:
    law = table(3, temperature=1.5)

    def member(text: tuple[int, ...]) -> bool:
        return SIZE - 1 not in text and bool(re.fullmatch(PATTERN, b"".join(PIECES[t] for t in text).decode()))

    _, evidence = reference.global_conditional(floats(law), member, END, LENGTH, SIZE)
    automaton = automaton_of(Regex(PATTERN), VOCABULARY)
    assert automaton is not None
    for seed in range(3):
        guidance = AWRS(particles=3, lookahead=MarkovLookahead(automaton, random_model(seed)))
        _, outcome = run(law, Regex(PATTERN), guidance, 200, LENGTH, seed)
        assert abs(z_score(outcome.log_evidence.exp().tolist(), evidence)) < 3.5


def test_training_finds_a_chain(tmp_path: Path) -> None:
    # A language model whose next token depends on the last one alone.
    generator = torch.Generator().manual_seed(0)
    rows = (2 * torch.randn(SIZE, SIZE, generator=generator)).log_softmax(-1)

    def chain(tokens: Tensor, cache: Any) -> tuple[Tensor, Tensor, Any]:
        return rows[tokens], torch.nn.functional.one_hot(tokens, SIZE).float(), None

    openings = [[1 + number % (SIZE - 1)] for number in range(400)] + [[1, 2]] * 100
    samples = training.sample(chain, openings, 10, [END], seed=1)
    assert samples.tokens.shape == samples.counts.shape == (500, 10)
    behind = (samples.tokens == END).cumsum(1) - (samples.tokens == END).long() > 0
    assert not bool((samples.counts & behind).any())
    seen: list[float] = []
    model = training.fit(samples, SIZE, rounds=6, progress=lambda _, value: seen.append(value))
    assert seen[-1] >= seen[0] - 0.02
    nats = -training.log_likelihood(model, samples)
    held = samples.tokens[samples.counts]
    before = samples.tokens[:, :-1][samples.counts[:, 1:]]
    best = -float(rows[before, held].mean())
    assert best - 0.05 < nats < best + 0.3 < training.unigram_nats(samples, samples)
    model.save(tmp_path / "chain.safetensors", {"rounds": 6})
    again = load(str(tmp_path / "chain.safetensors"))
    assert again.emission.allclose(model.emission, rtol=0.06, atol=1e-6)
    text = [3, 4, 1]
    assert again.log_likelihood(text) == pytest.approx(model.log_likelihood(text), abs=0.2)


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nothing.safetensors"
    path.write_bytes(b"nothing")
    law = table(3)
    with pytest.raises(ValueError, match="is not a file of 'textguide lookahead train'"):
        run(law, Regex("ab"), AWRS(lookahead=path), 1, LENGTH)
    random_model(0).save(path)
    other = Vocabulary((*PIECES, b"z"), frozenset({END}))
    with pytest.raises(ValueError, match="has 9 tokens, the language model 10"):
        run(lambda text: torch.zeros(10), Regex("ab"), AWRS(lookahead=path), 1, LENGTH, 0, other)
    run(law, Regex("ab"), AWRS(lookahead=path), 2, LENGTH)


def test_a_file_that_was_trained_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "chain.safetensors"
    for seed in (1, 2):
        random_model(seed).save(path)
        assert torch.allclose(load(path).initial, random_model(seed).initial)
        found = lookahead_of(str(path), Regex(PATTERN), VOCABULARY)
        assert isinstance(found, MarkovLookahead)
        assert torch.allclose(found.model.initial, random_model(seed).initial)


class Listening(Lookahead, Ahead):
    """Foresees nothing, and keeps the prompts that it is told."""

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []

    def begin(self, prompt: Sequence[int]) -> Ahead:
        self.prompts.append(list(prompt))
        return self

    def following(self, left: int, scores: Tensor | None = None) -> None:
        return None

    def after(self, token: int) -> Ahead:
        return self


def test_prompts_lose_their_padding_and_nothing_else() -> None:
    lookahead, model, tokenizer = Listening(), build("llama"), Tokenizer()
    prompts = [[EOS, 5, 6], [7, 8, 9, 10]]  # the first begins with what stands for padding too
    guidance = AWRS("regex:[a-z]*", lookahead=lookahead)
    options = {"vocabulary": LETTERS, "eos_token_id": EOS, "pad_token_id": EOS}
    textguide.generate(model, tokenizer, prompts, guidance, max_new_tokens=2, seed=0, **options)
    assert lookahead.prompts == prompts


def test_sums_that_were_kept_are_those_that_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGUIDE_CACHE", str(tmp_path))
    monkeypatch.setattr(array_cache, "MIN_SECONDS", 0.0)
    automaton = automaton_of(Regex(PATTERN), VOCABULARY)
    assert automaton is not None
    found = [MarkovLookahead(automaton, random_model(seed))._edges for seed in (1, 1, 2)]
    assert all(torch.equal(*pair) for pair in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0][2], found[2][2])
    monkeypatch.setattr(MarkovLookahead, "_sum_emissions", None)
    assert torch.equal(MarkovLookahead(automaton, random_model(1))._edges[2], found[0][2])
