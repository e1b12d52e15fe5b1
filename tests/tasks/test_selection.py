"""Choosing among texts and taking the prior of words away, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textguide.guidance import CFG, Step
from textguide.step.guided_step import guided_log_probs
from textguide.tasks import selection


def test_the_text_that_shares_most_is_chosen() -> None:
    texts = ["the cat sat on the mat", "A cat sat on a mat.", "the cat sat on a mat", "dogs bark"]
    sets = [set(t) for t in (["the", "cat", "sat", "on", "mat"], ["a", "cat", "sat", "on", "mat", "."],
                             ["the", "cat", "sat", "on", "a", "mat"], ["dogs", "bark"])]  # fmt: skip
    for number, score in enumerate(selection.consistency(texts)):
        others = [len(sets[number] & s) / len(sets[number] | s) for k, s in enumerate(sets) if k != number]
        assert score == pytest.approx(sum(others) / 3)
    assert selection.most_consistent(texts) == 2
    assert selection.most_consistent(["x", "y"]) == 0
    assert selection.consistency(["alone"]) == [1.0]
    assert selection.most_consistent(["", ""]) == 0
    assert selection.most_consistent(["ab", "abc", "xbc"], tokens=set) == 1
    with pytest.raises(ValueError, match="texts is empty"):
        selection.most_consistent([])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(2, 5), st.integers(0, 10_000))
def test_the_prior_is_matched(items: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(items, classes, generator=generator) + 3 * torch.randn(classes, generator=generator)
    before = selection.class_prior(scores)
    torch.testing.assert_close(before, scores.double().softmax(-1).mean(0), atol=1e-6, rtol=1e-6)
    weights = selection.matched_prior(scores, tolerance=1e-7)
    assert float(weights.mean()) == pytest.approx(0, abs=1e-9)
    reached = selection.reweigh(scores, weights).exp().mean(0)
    torch.testing.assert_close(reached, torch.full_like(reached, 1 / classes), atol=1e-5, rtol=0)
    target = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.1
    target /= target.sum()
    reached = selection.reweigh(scores, selection.matched_prior(scores, target, tolerance=1e-7)).exp().mean(0)
    torch.testing.assert_close(reached, target, atol=1e-5, rtol=0)
    # A constant bias of the words changes nothing.
    shifted = selection.matched_prior(scores + torch.arange(classes), tolerance=1e-9)
    both = selection.reweigh(scores + torch.arange(classes), shifted)
    torch.testing.assert_close(both, selection.reweigh(scores, weights), atol=1e-4, rtol=1e-4)


def test_one_item_with_its_own_distribution_as_null_prompt_is_undecided() -> None:
    logp = torch.log_softmax(torch.tensor([[1.0, -2.0, 0.5]]), -1)
    assert selection.reweigh(logp, selection.null_prior(logp[0])).exp().tolist()[0] == pytest.approx([1 / 3] * 3)


def test_the_null_prompt_is_the_direction_of_guidance() -> None:
    generator = torch.Generator().manual_seed(0)
    cond, null = torch.randn(2, 4, 3, generator=generator).log_softmax(-1)
    null = null[:1].expand(4, 3)
    reweighed = selection.reweigh(cond, selection.null_prior(null[0]))
    torch.testing.assert_close(reweighed.exp(), (cond - null).double().softmax(-1), atol=1e-6, rtol=1e-6)
    # Guidance adds that direction γ − 1 times to what the model says.
    guided = guided_log_probs(CFG(2.5), torch.stack([cond, null]), Step()).double()
    torch.testing.assert_close(guided, torch.log_softmax(cond + 1.5 * reweighed, -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (torch.zeros(3), {}, "log_probs of shape"),
        (torch.tensor([[0.0, -math.inf]]), {}, "finite"),
        (torch.zeros(2, 3), {"target": torch.tensor([0.5, 0.5])}, "target=.*3 positive"),
        (torch.zeros(2, 2), {"target": torch.tensor([0.0, 1.0])}, "positive"),
        (torch.tensor([[0.0, 5.0], [1.0, -3.0]]), {"steps": 1}, "steps=1"),
    ],
)
def test_bad_values(scores: torch.Tensor, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selection.matched_prior(scores, **options)  # type: ignore[arg-type]
