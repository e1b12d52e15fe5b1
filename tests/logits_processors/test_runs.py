"""One processor in many runs: wrapped, by hand, in threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from textguide import CAIFLogitsProcessor, CFGLogitsProcessor
from textguide.classifiers import FunctionClassifier

from ..architectures import Tokenizer, build

PROMPT = [5, 9, 33, 7, 20]
OPTIONS: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}


class Wrapper(LogitsProcessor):
    """A user's processor that calls another one."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self.inner(input_ids, scores)


def decode(processor: Any, prompt: list[int], new: int = 6) -> list[int]:
    inputs = {"inputs": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt)), "do_sample": False}
    out = build("llama").generate(**inputs, max_new_tokens=new, logits_processor=[processor])
    found: list[int] = out[0, len(prompt) :].tolist()
    return found


@pytest.mark.parametrize(
    "wrap",
    [
        Wrapper,
        lambda inner: Wrapper(LogitsProcessorList([inner])),
        lambda inner: Wrapper(lambda ids, scores: inner(ids, scores)),
    ],
    ids=["processor", "list of its own", "function"],
)
def test_a_wrapped_processor_begins_every_run_anew(wrap: Any) -> None:
    first = decode(CFGLogitsProcessor(build("llama"), 3.0), PROMPT)
    inner = CFGLogitsProcessor(build("llama"), 3.0)
    wrapped = wrap(inner)
    assert decode(wrapped, PROMPT) == first
    # The second prompt is the first text: in the second run its last token is what the other branch begins with.
    expected = decode(CFGLogitsProcessor(build("llama"), 3.0), PROMPT + first)
    assert decode(wrapped, PROMPT + first) == expected
    going_on = decode(CFGLogitsProcessor(build("llama"), 3.0), PROMPT, new=12)[6:]
    assert expected != going_on, "the two runs do not differ: the test has no power"
    assert len(inner._runs) == 0


def by_hand(processor: CFGLogitsProcessor, prompt: list[int], new: int) -> list[int]:
    model, ids = build("llama"), torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(new):
            scores = processor(ids, model(ids).logits[:, -1])
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
    found: list[int] = ids[0, len(prompt) :].tolist()
    return found


def test_loops_of_ones_own() -> None:
    processor = CFGLogitsProcessor(build("llama"), 3.0)
    first = decode(processor, PROMPT)
    assert by_hand(processor, PROMPT, 6) == first
    longer = PROMPT + first
    expected = decode(CFGLogitsProcessor(build("llama"), 3.0), longer)
    # One more token than the last step is the next step, unless reset() says otherwise.
    processor.reset()
    assert by_hand(processor, longer, 6) == expected
    # Several more tokens at once are another run.
    processor.reset()
    by_hand(processor, PROMPT, 3)
    assert by_hand(processor, longer, 6) == expected


def test_a_window_in_a_loop_of_ones_own() -> None:
    from textguide import CFG

    guidance = CFG(3.0, start=0.4, stop=0.8)
    expected = decode(CFGLogitsProcessor(build("llama"), guidance=guidance, horizon=6), PROMPT)
    assert by_hand(CFGLogitsProcessor(build("llama"), guidance=guidance, horizon=6), PROMPT, 6) == expected


def slow(texts: list[str]) -> list[list[float]]:
    """log p(class | text): likes texts by their letters, and gives other threads time to come in between."""
    threading.Event().wait(0.002)
    likes = [(sum(map(ord, text)) % 17 + 1) / 19 for text in texts]
    return [[like, 1 - like] for like in likes]


def test_threads_share_a_processor() -> None:
    classifier = FunctionClassifier(slow, ("a", "b"), probabilities=True)
    prompts = [[5, 9, 12, 7, 20], [4, 8, 11, 6, 15], [10, 10, 3, 9, 9], [22, 4, 4, 18, 7]]

    def fresh() -> CAIFLogitsProcessor:
        return CAIFLogitsProcessor(build("llama"), Tokenizer(), classifier, "a", 9.0, top_k=8)

    expected = [decode(fresh(), prompt) for prompt in prompts]
    assert expected != [decode(Wrapper(lambda ids, scores: scores), prompt) for prompt in prompts]
    shared, found = fresh(), [[]] * len(prompts)
    guided = CFGLogitsProcessor(build("llama"), 3.0)
    alone, together = [decode(guided, prompt) for prompt in prompts], [[]] * len(prompts)

    def work(number: int) -> None:
        found[number] = decode(shared, prompts[number])
        together[number] = by_hand(guided, prompts[number], 6)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
    assert together == alone
