"""One answer from several texts: drawn by weight, or the most consistent one."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra eval is not installed")
pytest.importorskip("scipy", reason="SciPy, of the extra classifiers, is not installed")

from lm_eval.api.instance import Instance
from scipy import stats

import textguide
from textguide import AWRS, CFG
from textguide.constraints import Predicate
from textguide.engine.results import Decoded
from textguide.eval import GuidedLM
from textguide.eval.lm_eval_models.several import one_each
from textguide.guidance import EAGer, FeynmanKac, as_guidance
from textguide.smc.population import Outcome
from textguide.step.effect import Effect
from textguide.support.errors import NoParticleLeftWarning
from textguide.tasks.selection import most_consistent

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


CONTEXTS = ["The cat sat on the", "A", "Question: what is it?\nAnswer:"]


def decoded(log_weights: list[float] | None, rows: int, finished: list[bool] | None = None) -> Decoded:
    """Rows whose text is their number."""
    outcome = Outcome(
        log_weights=None if log_weights is None else torch.tensor(log_weights, dtype=torch.float64),
        log_evidence=None,
        ess=None,
        finished=torch.tensor([True] * rows if finished is None else finished),
        lengths=[1] * rows,
        deaths=[None] * rows,
        calls=0,
        resamplings=0,
    )
    return Decoded(torch.tensor([[7, row] for row in range(rows)]), [1] * rows, Effect(), population=outcome)


def test_weighed_texts_are_drawn_in_proportion() -> None:
    run = decoded([math.log(v) for v in (1, 3, 2)] + [-math.inf, 0.0, -math.inf] + [-math.inf] * 3, 9)
    generator = torch.Generator().manual_seed(0)
    drawn = [one_each(run, 3, 1, None, generator)[:, 1].tolist() for _ in range(1200)]
    counts = Counter(rows[0] for rows in drawn)
    seen = [counts[row] for row in range(3)]
    assert stats.chisquare(seen, [200, 600, 400]).pvalue > 1e-3
    assert stats.chisquare(seen, [400, 400, 400]).pvalue < 1e-3
    assert {rows[1] for rows in drawn} == {4}  # the only one that lives
    assert {rows[2] for rows in drawn} == {6}  # none does


class Words:
    """Four texts, of which the second and the fourth share most."""

    def decode(self, ids: Any, **_: Any) -> str:
        return ["a b c", "x y z w", "q", "x y z", "x y z w"][int(ids[0])]


def test_branches_are_compared_with_one_another() -> None:
    run = decoded(None, 5, [True, False, True, True, True])
    assert one_each(run, 5, 1, Words(), None).tolist() == [[7, 3]]  # the second row was never filled


def texts_of(tiny_model: str, guidance: Any, **options: Any) -> tuple[list[str], Any]:
    settings = [as_guidance(guidance)]
    lm = GuidedLM(pretrained=tiny_model, batch_size=3, device="cpu", dtype="float32", settings=settings)
    options = {"until": ["\n"], "max_gen_toks": 12, **options}
    asked = [Instance("generate_until", {}, (text, options), n, ("t", n, 1)) for n, text in enumerate(CONTEXTS)]
    return lm.generate_until(asked, disable_tqdm=True), lm


@pytest.mark.filterwarnings("ignore::textguide.support.errors.GuidanceHadNoEffectWarning")  # a prompt of one token
def test_eager_answers_with_its_most_consistent_text(tiny_model: str) -> None:
    ours, lm = texts_of(tiny_model, [CFG(1.5), EAGer(2.0, max_branches=3)], until=[])
    for context, text in zip(CONTEXTS, ours, strict=True):
        run = textguide.eager(
            lm.model, lm.tokenizer, [context], CFG(1.5), entropy_threshold=2.0, max_branches=3, max_new_tokens=12
        )
        (branches,) = run.texts
        assert len(branches) == 3
        assert text == branches[most_consistent(branches)]


def test_a_constraint_of_several_particles_holds_for_the_answer(tiny_model: str) -> None:
    digits = Predicate(lambda text: re.fullmatch("[0-9]{0,6}", text) is not None, ascii=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoParticleLeftWarning)
        ours, lm = texts_of(tiny_model, [CFG(2.0), AWRS(digits, particles=4)], do_sample=True, temperature=1.0)
    assert all(re.fullmatch("[0-9]{0,6}", text) for text in ours), ours
    assert lm.effect(0).guided_steps > 0


def test_texts_end_at_their_own_stop(tiny_model: str) -> None:
    options = {"do_sample": True, "temperature": 1.0, "until": ["e", "t", "a"]}
    ours, _ = texts_of(tiny_model, [CFG(1.5), FeynmanKac(particles=3)], **options, max_gen_toks=40)
    again, _ = texts_of(tiny_model, [CFG(1.5), FeynmanKac(particles=3)], **options, max_gen_toks=40)
    assert ours == again
    assert not any(letter in text for text in ours for letter in "eta")
