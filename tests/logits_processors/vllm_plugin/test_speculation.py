"""Guesses inside vLLM: what the worker writes with them is what it writes without, and what may be asked for."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from textguide.guidance import APG, CFG, Formula
from textguide.logits_processors.vllm_plugin.draft_model import ModelGuesser
from textguide.logits_processors.vllm_plugin.extras import OURS
from textguide.logits_processors.vllm_plugin.processor_v1 import FirstRunnerProcessor
from textguide.logits_processors.vllm_plugin.requests import MAIN, Draw, Request
from textguide.logits_processors.vllm_plugin.speculation import (
    LookupGuesser,
    check_config,
    check_excluded,
    may_guess,
    settings_of,
)
from textguide.logits_processors.vllm_plugin.verification import read_guesses, verified

from ...smc.table import table
from ...tiny_folder import make_model, make_tokenizer

WORDS, END, LENGTH = 6, 0, 12
LAWS = [table(seed, WORDS, 1.5) for seed in range(4)]
CONFIG = SimpleNamespace(instance_id="guesses")


class Sampler:
    """vLLM's, as far as it matters: the processor, and then the most likely token."""

    def __init__(self, processor: FirstRunnerProcessor) -> None:
        self.processor = processor

    @staticmethod
    def greedy_sample(logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(-1)

    def __call__(self, logits: torch.Tensor, sampling_metadata: Any) -> Any:
        tokens = self.processor.apply(logits.clone()).argmax(-1)
        return SimpleNamespace(sampled_token_ids=tokens[:, None].int(), logprobs_tensors=None)


def processor_with(
    requests: list[tuple[Request | None, int]],
) -> tuple[FirstRunnerProcessor, list[list[int]], list[Any]]:
    """A batch: of every request the row of its main one and those of its branches."""
    processor = FirstRunnerProcessor(CONFIG, "cpu", False)
    written: list[list[int]] = []
    laws, added = [], []
    for name, (request, law) in enumerate(requests):
        for place in range(1 if request is None else 1 + len(request.prompts)):
            extra: dict[str, Any] | None = None
            if request is not None:
                extra = {OURS: {"group": str(name), "place": place}}
                if place == MAIN:
                    extra[OURS] |= {"measures": True, "request": request.to_dict(), "ends": [END]}
            written.append([])
            laws.append(LAWS[(law + place) % len(LAWS)])
            added.append((len(written) - 1, SimpleNamespace(extra_args=extra), [1, 2], written[-1]))
    processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
    return processor, written, laws


def write(requests: list[tuple[Request | None, int]], chance: random.Random | None) -> tuple[list[list[int]], Any, int]:
    """What every row writes, what was seen, and how many guesses were right; with ``chance`` some are read."""
    processor, written, laws = processor_with(requests)
    rows: list[list[int]] = []
    for request, _ in requests:
        first = sum(map(len, rows))
        rows.append(list(range(first, first + (1 if request is None else 1 + len(request.prompts)))))
    sampler, seen, right = Sampler(processor), {}, 0
    while any(len(text) < LENGTH for text in written):
        guesses: list[list[int]] = [[] for _ in written]
        for (request, _), own in zip(requests, rows, strict=True):
            if chance is not None and request is not None and chance.random() < 0.8:
                count = chance.randrange(4)
                made = [chance.randrange(1, WORDS) for _ in range(count)]
                for row in own:
                    guesses[row] = made[: LENGTH - 1 - len(written[row])] if len(written[row]) < LENGTH else []
        logits = torch.stack(
            [
                laws[row]((*text, *guesses[row][:depth]))
                for row, text in enumerate(written)
                for depth in range(len(guesses[row]) + 1)
            ]
        )
        counts = [len(one) for one in guesses]
        bonus = torch.tensor([count + 1 for count in counts]).cumsum(0) - 1
        metadata = SimpleNamespace(
            num_draft_tokens=counts,
            draft_token_ids=torch.tensor([token for one in guesses for token in one], dtype=torch.long),
            bonus_logits_indices=bonus,
        )
        output = verified(processor, sampler, logits, metadata, None).sampled_token_ids.tolist()
        for group, told in processor.outbox.take().items():
            seen.setdefault(group, {}).update(told)
        for text, tokens in zip(written, output, strict=True):
            text += [token for token in tokens if token >= 0]
            right += sum(token >= 0 for token in tokens) - 1
    return [text[:LENGTH] for text in written], seen, right


def test_the_same_is_written_with_guesses_as_without() -> None:
    chance, right = random.Random(0), 0
    for number in range(20):
        requests: list[tuple[Request | None, int]] = []
        for place in range(4):
            guidance = chance.choice(
                [None, CFG(1.5), CFG(2.0, stop=0.5), APG(2.0), Formula("2*cond - 0.5*last - 0.5*P('x')")]
            )
            if guidance is None:
                requests.append((None, place))
                continue
            count = len(guidance.branches)
            draw = chance.choice(
                [Draw(), Draw(0.8, seed=number, repetition_penalty=1.2), Draw(1.0, top_k=3, logprobs=1)]
            )
            prompts = tuple((1, n) for n in range(count))
            readings = tuple((n, "") for n in range(1, count + 1))
            requests.append((Request(guidance, prompts, readings, draw, LENGTH, limit=LENGTH), place))
        plain, told, _ = write(requests, None)
        ours, heard, found = write(requests, chance)
        right += found
        assert [text[: text.index(END) + 1] if END in text else text for text in ours] == [
            text[: text.index(END) + 1] if END in text else text for text in plain
        ]
        for group, positions in told.items():
            own = plain[sum(1 if r is None else 1 + len(r.prompts) for r, _ in requests[: int(group)])]
            for at in range(own.index(END) + 1 if END in own else LENGTH):
                assert (at in heard[group]) == (at in positions)
                if at not in positions:
                    continue
                mine, other = heard[group][at], positions[at]
                assert mine["kl"] == pytest.approx(other["kl"], abs=1e-6)
                assert (mine["guided"], mine["token"], mine["ids"]) == (other["guided"], other["token"], other["ids"])
    assert right > 40


def test_a_worker_that_takes_every_guess_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    verify = FirstRunnerProcessor.verify

    def takes_all(self: Any, logits: Any, starts: Any, guesses: Any, greedy: Any) -> Any:
        return {
            row: [*guesses[row], *tokens[-1:]] for row, tokens in verify(self, logits, starts, guesses, greedy).items()
        }

    monkeypatch.setattr(FirstRunnerProcessor, "verify", takes_all)
    with pytest.raises((AssertionError, KeyError)):
        test_the_same_is_written_with_guesses_as_without()


def test_runners_of_one_class_are_wrapped_once() -> None:
    class Runner:
        def _prepare_inputs(self, scheduled: Any, counts: Any) -> Any:
            return "indices", None, 1

        def _sample(self, logits: Any, metadata: Any) -> Any:
            return "sampled"

    read_guesses(Runner)
    wrapped = Runner._prepare_inputs
    read_guesses(Runner)
    assert Runner._prepare_inputs is wrapped
    assert Runner()._prepare_inputs(SimpleNamespace(scheduled_spec_decode_tokens={}), None) == ("indices", None, 1)


def test_guesses_follow_what_stood_there_before() -> None:
    guesser = LookupGuesser(settings_of({"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 2}))
    assert guesser.guess("a", [1, 2, 3, 4, 1, 2], 3) == [3, 4, 1]
    guesser.judge("a", 3)
    assert guesser.guess("a", [1, 2, 3, 4, 1, 2], 2) == [3, 4]
    assert guesser.guess("b", [1, 5, 1], 3) == []  # one token alone
    for _ in range(20):
        guesser.guess("c", [1, 2, 3, 4, 1, 2], 3)
        guesser.judge("c", 0)
    assert guesser.guess("c", [1, 2, 3, 4, 1, 2], 3) == []  # those are never right
    for name in "abc":
        guesser.forget(name)
    assert not guesser._rows
    assert not guesser._drafter._texts


def test_a_draft_model_guesses_what_it_would_write(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    guesser = ModelGuesser(settings_of({"method": "draft_model", "model": str(tmp_path), "num_speculative_tokens": 3}))
    model = guesser.model  # in the precision that it is loaded with
    chance = random.Random(0)
    made = 0
    texts = {name: [chance.randrange(4, 90) for _ in range(5)] for name in "ab"}
    for step in range(12):
        name = chance.choice("ab")
        most = chance.choice((1, 3, 3))
        expected = list(texts[name])
        for _ in range(most):
            logits = model(torch.tensor([expected])).logits
            expected.append(int(logits[0, -1].argmax()))
        guesses = guesser.guess(name, texts[name], most)
        assert guesses == expected[len(texts[name]) :][: len(guesses)], step  # fewer where fewer would pay
        made += len(guesses)
        right = chance.randrange(len(guesses) + 1)  # another token follows behind those that are right
        guesser.judge(name, right)
        texts[name] += [*guesses[:right], chance.randrange(4, 90)]
    assert made > 12
    guesser.judge("a", 1)
    assert guesser.guess("a", [5, 6], 1) == [int(model(torch.tensor([[5, 6]])).logits[0, -1].argmax())]
    for _ in range(60):
        guesser.judge("a", 0)
        guesser.guess("a", [5, 6], 3)
    assert guesser.guess("a", [5, 6], 3) == []  # they are never right
    for name in "ab":
        guesser.forget(name)
    assert not guesser._rows
    assert not guesser._guesses


def test_a_draft_model_that_forgets_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=4,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"speculative_config: model=.* forgets what it has read"):
        ModelGuesser(settings_of({"method": "draft_model", "model": str(tmp_path)}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "draft_model"}, "model=None must name the draft model"),
        ({"method": "draft_model", "model": 5}, "model=5 must name the draft model"),
        (
            {"method": "draft_model", "model": "smollm2-small", "prompt_lookup_max": 3},
            "'prompt_lookup_max' is not a field",
        ),
        (5, "speculative_config=5 must be an object"),
        ({"method": "eagle"}, "method='eagle' does not work with guidance"),
        ({"num_speculative_tokens": 3}, "method=None does not work with guidance"),
        ({"method": "ngram", "draft_tensor_parallel_size": 2}, "'draft_tensor_parallel_size' is not a field of"),
        ({"method": "ngram", "num_speculative_tokens": True}, "num_speculative_tokens=True must be a whole number"),
        ({"method": "ngram", "prompt_lookup_min": 4}, "prompt_lookup_min=4 must be at most prompt_lookup_max=3"),
    ],
)
def test_what_cannot_be_asked_for_is_named(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(given)


def test_what_was_not_tried_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"speculative_config does not work with tensor_parallel_size=2: it was not"):
        check_excluded({"tensor_parallel_size": 2})
    check_excluded({"tensor_parallel_size": 1, "enable_lora": None})
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(async_scheduling=False),
        parallel_config=SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1),
        lora_config=object(),
        use_v2_model_runner=False,
        additional_config=None,
    )
    with pytest.raises(ValueError, match="does not work with enable_lora=True"):
        check_config(config)
    config.lora_config, config.use_v2_model_runner = None, True
    with pytest.raises(ValueError, match="does not work with VLLM_USE_V2_MODEL_RUNNER=True"):
        check_config(config)
    assert may_guess(SimpleNamespace(min_tokens=0, bad_words=None))
    assert not may_guess(SimpleNamespace(logit_bias={3: 1.0}))
