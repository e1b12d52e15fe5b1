"""Causal classifiers: candidates behind a shared cache equal re-reading, for every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from textguide.classifiers import CausalSequenceClassifier

from ..architectures import Tokenizer, build
from . import models

ROWS = [[5, 9, 13, 22, 7, 31, 8], [4, 11], [17, 3, 28, 40, 41, 42, 43, 44, 45, 46]]


def classifier(architecture: str, **options: Any) -> CausalSequenceClassifier:
    return CausalSequenceClassifier.from_model(models.causal(architecture), Tokenizer(), **options)


def reread(reader: CausalSequenceClassifier, ids: list[list[int]], candidates: torch.Tensor) -> torch.Tensor:
    """Each text with each candidate read alone, by the model's own forward."""
    model, k = models.causal(reader.name), candidates.shape[1]
    rows = []
    for row, tokens in zip(ids, candidates.tolist(), strict=True):
        for token in tokens:
            with torch.no_grad():
                hidden = model.base_model(torch.tensor([[*row, token]])).last_hidden_state
                rows.append(model.score(hidden)[0, -1].log_softmax(-1))
    return torch.stack(rows).view(len(ids), k, -1)


@pytest.fixture(params=models.CAUSAL)
def reader(request: pytest.FixtureRequest) -> CausalSequenceClassifier:
    return classifier(request.param, name=request.param)


def candidates(rows: int, k: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, models.VOCAB, (rows, k), generator=torch.Generator().manual_seed(seed))


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_candidates_equal_rereading(reader: CausalSequenceClassifier) -> None:
    state = reader.start(ROWS)
    few = candidates(3)
    expected = reread(reader, ROWS, few)
    assert expected.exp().std(dim=1).max() > 0.01  # the candidates matter
    for _ in range(2):  # nothing is left behind by the first
        close(state.log_prob([0, 1, 2], few), expected)
    close(state.log_prob([2, 0], few[[2, 0]]), expected[[2, 0]])
    close(state.log_prob([1], few[[1], :1]), expected[[1], :1])
    assert reader.share is (reader.name in models.SHARING)


def test_rows_grow_lag_and_move(reader: CausalSequenceClassifier) -> None:
    ids = [list(row) for row in ROWS]
    state = reader.start(ids)
    state.log_prob([0, 1, 2], candidates(3))
    for step, rows in enumerate([[0, 1, 2], [0, 2], [0], [0, 1]]):  # row 1 and 2 lag behind
        tokens = [10 + step + row for row in rows]
        state.append(rows, tokens)
        for row, token in zip(rows, tokens, strict=True):
            ids[row].append(token)
    few = candidates(3, seed=1)
    close(state.log_prob([1, 2], few[1:]), reread(reader, ids[1:], few[1:]))
    state.append([2], [50])
    ids[2].append(50)
    state.select([2, 0, 2])
    ids = [list(ids[2]), ids[0], list(ids[2])]
    state.append([0], [20])
    ids[0].append(20)
    few = candidates(3, seed=2)
    close(state.log_prob([0, 1, 2], few), reread(reader, ids, few))


def test_select_before_anything_was_read() -> None:
    reader = classifier("llama", name="llama")
    state = reader.start(ROWS)
    state.append([1], [9])
    state.select([1])
    few = candidates(1)
    close(state.log_prob([0], few), reread(reader, [[*ROWS[1], 9]], few))


@pytest.mark.parametrize("share", [True, False])
def test_both_ways_are_the_same(share: bool) -> None:
    reader = classifier("llama", name="llama", share=share, batch_size=4)
    few = candidates(3)
    close(reader.start(ROWS).log_prob([0, 1, 2], few), reread(reader, ROWS, few))


def test_the_prefix_is_read_once() -> None:
    reader = classifier("llama", name="llama", share=True)
    state = reader.start(ROWS)
    state.log_prob([0, 1, 2], candidates(3))
    widths: list[int] = []
    forward = reader.forward
    reader.forward = lambda ids, *rest: widths.append(ids.shape[1]) or forward(ids, *rest)  # type: ignore[method-assign, func-returns-value]
    state.append([0, 1, 2], [7, 8, 9])
    state.log_prob([0, 1, 2], candidates(3))
    assert widths == [1, 6]
    state.log_prob([0, 1, 2], candidates(3))
    assert widths == [1, 6, 6]


def test_texts_and_ids_agree() -> None:
    reader = classifier("gpt2", name="gpt2")
    texts = ["the cat", "a", "a longer text than others"]
    got = reader.log_prob(texts)
    state = reader.start([reader.tokenizer(text[:-1]).input_ids or [1] for text in texts[:1]])
    last = torch.tensor([[reader.tokenizer(texts[0][-1]).input_ids[0]]])
    close(state.log_prob([0], last)[0, 0], got[0])
    single = torch.cat([reader.log_prob([text]) for text in texts])
    close(got, single)


def test_empty_texts_start_with_the_first_token() -> None:
    reader = classifier("llama", name="llama")
    few = candidates(1)
    close(reader.start([[]]).log_prob([0], few), reread(reader, [[1]], few))
    assert reader.log_prob([""]).shape == (1, 3)

    class Bare(Tokenizer):
        bos_token_id = None
        eos_token_id = None  # type: ignore[assignment]

    bare = CausalSequenceClassifier.from_model(models.causal("llama"), Bare(), name="bare")
    with pytest.raises(ValueError, match="classifier bare cannot read an empty text"):
        bare.log_prob([""])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_long_texts_keep_their_newest_tokens(name: str) -> None:
    reader = classifier(name, name=name)
    row = [3 + i % 50 for i in range(60)]
    state = reader.start([row])
    state.log_prob([0], candidates(1))
    for token in range(3, 40):
        state.append([0], [token])
        row.append(token)
        assert state.log_prob([0], candidates(1)).isfinite().all()
    kept = state._read[0], int(state._next[0])
    assert kept[0] == len(row)
    assert kept[1] <= 63
    few = candidates(1)
    close(state.log_prob([0], few), reread(reader, [row[-kept[1] :]], few))


def test_recurrent_models_are_refused() -> None:
    with pytest.raises(ValueError, match="classifier mine: MambaModel is not a decoder with only attention layers"):
        CausalSequenceClassifier(
            build("mamba").base_model, lambda hidden: hidden[..., :2], Tokenizer(), ("a", "b"), name="mine"
        )


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="3 outputs do not fit"):
        classifier("llama", labels=("a", "b"))
    with pytest.raises(ValueError, match="no head named 'score'"):
        CausalSequenceClassifier.from_model(build("llama"), Tokenizer())
    state = classifier("llama").start(ROWS)
    with pytest.raises(ValueError, match="row 3 does not exist"):
        state.log_prob([3], candidates(1))
    with pytest.raises(ValueError, match=r"candidates has shape \(1, 6\) for 2 rows"):
        state.log_prob([0, 1], candidates(1))
    assert state.log_prob([], torch.empty(0, 4, dtype=torch.long)).shape == (0, 4, 3)
