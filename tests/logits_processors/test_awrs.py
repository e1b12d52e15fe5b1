"""AWRS inside transformers' own loop."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from textguide import AWRS, AWRSLogitsProcessor
from textguide.reference import decoding as plain_reference
from textguide.reference import smc as reference

from ..smc.statistics import chi_square, z_score
from ..smc.table import exact_samples
from ..smc.test_engine import MEMBERS, TOYS, tiny
from ..smc.toys import END, PIECES, Strings

PROMPT, LENGTH, COUNT = [3, 5, 1], 3, 1500


def run(processor: AWRSLogitsProcessor, rows: int = COUNT, **options: Any) -> list[tuple[int, ...]]:
    ids = torch.tensor([PROMPT] * rows)
    options = {"max_new_tokens": LENGTH, "pad_token_id": 8, **options}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        out = tiny().generate(ids, attention_mask=torch.ones_like(ids), logits_processor=[processor], **options)
    lengths = processor.outcome.lengths if processor.outcome is not None else [LENGTH] * rows
    written = out[:, len(PROMPT) :].tolist()
    return [tuple(row[:length]) for row, length in zip(written, lengths, strict=True)]


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("masks", [False, True])
def test_weights_make_the_global_conditional(masks: bool, do_sample: bool) -> None:
    model = tiny()
    next_probs = _NextProbs(model)
    conditional, evidence = reference.global_conditional(
        next_probs, lambda t: 8 not in t and b"".join(PIECES[i] for i in t) in MEMBERS, END, LENGTH, len(PIECES)
    )
    processor = AWRSLogitsProcessor(Strings(MEMBERS, masks), vocabulary=TOYS, horizon=LENGTH)
    texts = run(processor, do_sample=do_sample)
    assert abs(z_score(processor.log_weights.exp().tolist(), evidence)) < 3.5
    drawn = exact_samples(texts, processor.outcome)
    assert len(drawn) > 100
    assert chi_square(Counter(drawn), conditional, len(drawn)) > 1e-3


class _NextProbs:
    def __init__(self, model: Any) -> None:
        self.model, self.known = model, {}  # type: ignore[var-annotated]

    def __call__(self, text: tuple[int, ...]) -> list[float]:
        if text not in self.known:
            self.known[text] = [math.exp(v) for v in plain_reference.next_log_probs(self.model, [*PROMPT, *text])]
        return self.known[text]


def test_every_call_starts_anew() -> None:
    constraint = Strings(MEMBERS)
    used, fresh = (
        AWRSLogitsProcessor(constraint, vocabulary=TOYS, horizon=LENGTH, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    run(used, 7)
    assert used.log_weights.shape == (7,)
    used.generator.manual_seed(1)
    first = used.outcome
    assert run(used, 20) == run(fresh, 20)
    assert torch.equal(used.log_weights, fresh.log_weights)
    assert first.log_weights.shape == (7,)


def test_a_text_that_is_cut_off_is_unfinished() -> None:
    processor = AWRSLogitsProcessor(Strings(frozenset({b"abab"})), vocabulary=TOYS)
    run(processor, 30, max_new_tokens=2)
    assert not bool(processor.outcome.finished.any())
    assert processor.log_weights.tolist() == [-math.inf] * 30


def test_what_it_cannot_do_is_refused() -> None:
    processor = AWRSLogitsProcessor(Strings(MEMBERS), vocabulary=TOYS)
    assert processor.log_weights is None
    with pytest.raises(ValueError, match="rows were reordered"):
        run(processor, 2, num_beams=3, do_sample=False)
    with pytest.raises(ValueError, match="particles=2 move between rows"):
        AWRSLogitsProcessor(AWRS(Strings(MEMBERS), particles=2), vocabulary=TOYS)
    with pytest.raises(ValueError, match="sampler='mask'"):
        AWRSLogitsProcessor(AWRS(Strings(MEMBERS), sampler="mask"), vocabulary=TOYS)
    with pytest.raises(ValueError, match="tokenizer=None"):
        AWRSLogitsProcessor(Strings(MEMBERS))
    with pytest.raises(ValueError, match="horizon=0"):
        AWRSLogitsProcessor(Strings(MEMBERS), vocabulary=TOYS, horizon=0)


def test_without_a_constraint_scores_stay() -> None:
    scores = torch.randn(2, len(PIECES))
    assert AWRSLogitsProcessor(None, vocabulary=TOYS)(torch.tensor([[1], [2]]), scores) is scores
