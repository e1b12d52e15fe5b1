"""Readers that share rows read what readers with a row each read; and rows that no padding may reach."""

from __future__ import annotations

import random

import pytest
import torch

from textguide.forward import prefill, row_batch

from ..architectures import VOCAB, build

PROMPTS = [[5, 6, 7, 8], [9, 10, 11], [5, 6, 7, 8], [5, 6, 7, 8]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom", "mamba", "jamba"])
@torch.no_grad()
def test_shared_rows_are_the_rows_themselves(name: str, seed: int) -> None:
    model = build(name)
    rng = random.Random(seed)
    shared, ours = prefill.read_prompts(model, PROMPTS, "cpu", sharing=True)
    plain, theirs = prefill.read_prompts(model, PROMPTS, "cpu")
    assert isinstance(shared, row_batch.SharedRows)
    assert shared.rows == 2
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    history = [tuple(prompt) for prompt in PROMPTS]
    for _ in range(8):
        what = rng.choice(["read", "read", "select", "split", "merge"])
        index = torch.tensor([rng.randrange(len(history)) for _ in history])
        if what == "select":
            shared.select(index)
            plain.select(index)
            history = [history[i] for i in index]
        elif what == "split":
            shared, plain = shared.split(index), plain.split(index)
            history = [history[i] for i in index]
        elif what == "merge" and len(history) < 9:
            more, _ = prefill.read_prompts(model, PROMPTS[:2], "cpu")
            twin, _ = prefill.read_prompts(model, PROMPTS[:2], "cpu")
            shared, plain = row_batch.merge([shared, more]), row_batch.merge([plain, twin])  # type: ignore[assignment]
            history += [tuple(prompt) for prompt in PROMPTS[:2]]
        ids = torch.tensor([[rng.choice([3, 4])] for _ in history])
        history = [(*read, int(token)) for read, token in zip(history, ids, strict=True)]
        torch.testing.assert_close(shared.forward(ids), plain.forward(ids), atol=1e-4, rtol=0)
        # Readers who parted never share again, even if they have read the same; no row is without readers.
        assert len(set(history)) <= shared.rows <= len(history)
        assert set(shared.row_of.tolist()) == set(range(shared.rows))


@torch.no_grad()
def test_rows_of_the_pass_are_counted() -> None:
    model = build("llama")
    shared, _ = prefill.read_prompts(model, [[5, 6, 7]] * 6, "cpu", sharing=True)
    rows = []

    def count(**inputs: torch.Tensor) -> object:
        rows.append(inputs["input_ids"].shape[0])
        return model(**inputs)

    for batch in shared.batches():
        batch.call = count
    for tokens in ([3] * 6, [3, 3, 3, 4, 4, 4], [7] * 6, [8, 9, 8, 8, 8, 8]):
        shared.forward(torch.tensor(tokens)[:, None])
    shared.select(torch.tensor([0, 0, 0, 0, 2, 2]))
    assert shared.forward(torch.full((6, 1), 3)).shape == (6, 1, VOCAB)
    assert rows == [1, 2, 2, 3, 1]
