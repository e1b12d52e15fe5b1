"""CARS and ASAp in the decoding loop: texts that begin again, and what is learned over batches and calls."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor

import textguide
from textguide import AWRS, CFG
from textguide.guidance import Guidance
from textguide.reference import decoding as plain_reference
from textguide.reference import smc as reference

from ..architectures import Tokenizer, build
from .statistics import chi_square
from .test_engine import LETTERS, TOYS, VOWELS, Pieces, generate, plainly, tiny
from .toys import END, PIECES, Strings


@pytest.mark.parametrize("guided", [False, True], ids=["alone", "with CFG"])
@pytest.mark.parametrize("sampler", ["cars", "asap"])
@pytest.mark.parametrize("name", ["mamba", "t5"])
def test_texts_that_learn_have_the_distribution_of_their_own_text(name: str, sampler: str, guided: bool) -> None:
    cfg = CFG(1.5, negative_prompt="zebra") if guided else None
    awrs = AWRS(VOWELS, particles=4, sampler=sampler, max_tries=3, ess_threshold=1.0)
    out = generate(name, [cfg, awrs] if guided else awrs, dies=True)
    for row, tokens in enumerate(out.new_tokens):
        expected = plainly(name, out, row, 4, cfg)
        assert out.log_probs[row, : len(tokens)].tolist() == pytest.approx(expected, abs=2e-4)
        assert out.log_probs[row, len(tokens) :].tolist() == [0.0] * (out.log_probs.shape[1] - len(tokens))
        assert out.sequences[row, -out.log_probs.shape[1] :].tolist()[: len(tokens)] == tokens
        assert out.finished[row] == (out.deaths[row] is None) == (out.log_weights[row] > -math.inf)
    assert (out.tries is not None) == (sampler == "cars")
    if out.tries is not None:
        assert len(out.tries) == 12
        assert max(out.tries) == 3
        assert "tries" in str(out)


def test_cars_in_the_loop_draws_the_conditional_and_learns_over_batches() -> None:
    model = tiny()
    members = Strings(frozenset({b"ab", b"cab", b"abab", b"b", b"ca", b"ba"}))
    prompt, cfg = [3, 5, 1], CFG(1.5, negative_prompt=[6, 2])

    @cache
    def law(text: tuple[int, ...]) -> list[float]:
        rows = [plain_reference.next_log_probs(model, [*start, *text]) for start in (prompt, [6, 2])]
        tempered = [v / 1.3 for v in plain_reference.guided_distribution(cfg, rows, len(text) / 3)]
        return [math.exp(v) for v in plain_reference.normalized(tempered)]

    conditional, evidence = reference.global_conditional(
        law, lambda t: 8 not in t and b"".join(PIECES[i] for i in t) in members.members, END, 4, len(PIECES)
    )
    options = {"max_new_tokens": 4, "vocabulary": TOYS, "batch_size": 2, "temperature": 1.3}
    prompts = [prompt] * 4
    texts, tries = [], []
    with textguide.Lessons() as lessons:
        for seed in range(8):
            out = textguide.generate(
                model, Pieces(), prompts, [cfg, AWRS(members, sampler="cars", particles=4)], seed=seed, **options
            )
            texts += [tuple(tokens) for tokens in out.new_tokens]
            tries.append(sum(out.tries))
    assert chi_square(Counter(texts), conditional, len(texts)) > 1e-3
    assert sum(tries[-5:]) < 5 * tries[0]
    assert evidence < 0.5
    assert 2 < lessons.prefixes < 200
    # Without a block, one call learns by itself: it can be repeated.
    one, other = (
        textguide.generate(model, Pieces(), prompts, AWRS(members, sampler="cars"), seed=5, **options) for _ in range(2)
    )
    assert one.texts == other.texts
    assert one.tries == other.tries


def test_what_a_try_leaves_in_a_processor_does_not_reach_the_next() -> None:
    class Counting(LogitsProcessor):  # as watermarks remember what was written
        def __init__(self, model: Any) -> None:
            self.model, self.seen, self.chance = model, {"steps": 0}, torch.Generator().manual_seed(0)

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.seen["steps"] += 1
            assert self.seen["steps"] == input_ids.shape[1]
            assert self.model is model
            return scores

    model, processor = tiny(), Counting(None)
    processor.model = model
    out = textguide.generate(
        model,
        Pieces(),
        [[3]],
        AWRS(Strings(frozenset({b"abab"})), sampler="cars"),
        max_new_tokens=5,
        seed=0,
        vocabulary=TOYS,
        logits_processor=[processor],
    )
    assert out.tries is not None
    assert max(out.tries) > 1
    assert processor.seen == {"steps": 0}


def test_what_differs_learns_apart() -> None:
    model = tiny()
    members = Strings(frozenset({b"ab", b"b"}))

    def count(guidance: Any, **options: Any) -> int:
        before = len(lessons._roots)
        options = {"max_new_tokens": 3, "seed": 0, "prompts": [[3, 1]], **options}
        textguide.generate(model, Pieces(), guidance=guidance, vocabulary=TOYS, **options)
        return len(lessons._roots) - before

    with textguide.Lessons() as lessons:
        cars = AWRS(members, sampler="cars")
        assert count(cars) == 1
        assert count(cars, seed=3) == 0
        assert count(AWRS(members, sampler="asap", particles=2)) == 0
        assert count(cars, prompts=[[3, 1], [3, 1], [3, 2]]) == 1
        assert count(cars, max_new_tokens=4) == 1
        assert count(cars, temperature=0.7) == 1
        assert count(cars, temperature=0.7) == 0
        assert count(AWRS(Strings(frozenset({b"ab"})), sampler="cars")) == 1
        assert count([CFG(1.5, negative_prompt=[6, 3]), cars]) == 1
        assert count([CFG(1.5, negative_prompt=[6, 4]), cars]) == 1
        assert count([CFG(1.5, negative_prompt=[6, 4]), cars]) == 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"streamer": Tokenizer()}, "streamer"),
        ({"do_sample": False}, "do_sample=False"),
        ({"cache_implementation": "static"}, "static"),
    ],
)
def test_what_texts_that_begin_again_refuse(options: dict[str, Any], complaint: str) -> None:
    awrs = AWRS(VOWELS, sampler="cars")
    guidance = [options.pop("guidance"), awrs] if "guidance" in options else awrs
    if "streamer" in options:
        options["streamer"] = type("Streamer", (), {"put": lambda *_: None, "end": lambda *_: None})()
    with pytest.raises(ValueError, match=complaint):
        generate("llama", guidance, **options)
    with pytest.raises(ValueError, match="stream"):
        textguide.stream(build("llama"), Tokenizer(), "a", awrs, max_new_tokens=3, vocabulary=LETTERS)


def test_the_former_name_of_the_sampler_is_read() -> None:
    described = {"method": "awrs", "constraint": "regex:a", "constraint_method": "mask"}
    assert Guidance.from_dict(described) == AWRS("regex:a", sampler="mask")
    assert "sampler" not in AWRS("regex:a").to_dict()
    assert "max_tries" not in AWRS("regex:a").to_dict()
    assert Guidance.from_dict(AWRS("regex:a", sampler="cars", max_tries=7).to_dict()).max_tries == 7
    with pytest.raises(ValueError, match="sampler='asap'"):
        AWRS("regex:a", sampler="cars", critic=len)
    with pytest.raises(ValueError, match="max_tries=0"):
        AWRS("regex:a", max_tries=0)
