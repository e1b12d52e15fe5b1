"""A fixed sample of the fuzzer's cases, its own parts, and faults that it has to find."""

from __future__ import annotations

import pytest

from textguide.forward import row_batch

from .cases import Case, draw, from_json, smaller
from .engine import shrunk
from .faults import FAULTS, Fault, found
from .models import ENCODER_DECODER
from .running import WAYS, Outcome, run

SAMPLE = 150
"""Cases of the sample; ``python -m tests.fuzzing.engine`` runs as many as asked for."""


@pytest.mark.parametrize("first", range(0, SAMPLE, 10))
def test_a_sample_has_no_finding(first: int) -> None:
    for number in range(first, first + 10):
        case = draw(number, seed=33)
        outcome = run(case)
        assert outcome.kind != "FINDING", f"{outcome.detail}: --replay '{case.to_json()}'"


def test_rows_of_their_own_lengths_have_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_batch, "LEAST_PADDING", 1)
    cases = [draw(number, seed=35) for number in range(200)]
    unequal = [case for case in cases if len(set(map(len, [*case.prompts, *(case.negatives or [[5]])]))) > 1]
    for case in unequal[:60]:
        outcome = run(case)
        assert outcome.kind != "FINDING", f"{outcome.detail}: --replay '{case.to_json()}'"


def test_the_sample_compares_most_cases_and_covers_every_way_in() -> None:
    outcomes = [run(draw(number, seed=33)).kind for number in range(0, SAMPLE, 5)]
    assert outcomes.count("equal") > 0.7 * len(outcomes)
    assert outcomes.count("invalid") < 0.1 * len(outcomes)
    cases = [draw(number, seed=33) for number in range(SAMPLE)]
    assert {case.entry for case in cases} == set(WAYS)
    assert {case.model for case in cases} >= ENCODER_DECODER


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_that_is_put_back_is_found(fault: Fault) -> None:
    first = found(fault, 20)
    assert first is not None
    _, case, outcome = first
    assert outcome.kind == "FINDING"
    assert run(case).kind in ("equal", "refused")


def test_a_case_is_one_line_of_json() -> None:
    for number in range(50):
        case = draw(number, seed=1)
        assert from_json(case.to_json()) == case


def test_a_finding_is_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_again(case: Case) -> Outcome:
        wrong = "top_k" in case.options and len(case.prompts[0]) > 1
        return Outcome("FINDING", "row 0: differs") if wrong else Outcome("equal")

    monkeypatch.setattr("tests.fuzzing.engine.run", run_again)
    large = Case(
        model="gpt2",
        prompts=[[3, 4, 5, 6], [7]],
        negatives=[[5], [6]],
        new=4,
        options={"do_sample": True, "top_k": 5, "top_p": 0.5},
        mode="train",
    )
    small, outcome = shrunk(large, run_again(large))
    assert outcome.kind == "FINDING"
    assert small.model == "llama"
    assert small.options == {"top_k": 5}
    assert len(small.prompts) == 1
    assert len(small.prompts[0]) == 2
    assert small.new == 1
    assert small.mode == "eval"
    assert all(len(candidate.to_json()) for candidate in smaller(small))
