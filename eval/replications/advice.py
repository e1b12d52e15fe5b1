"""Which method to try first for each kind of task, according to the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textguide.guidance import catalogue

from ..reports.markdown import number, table
from .claim import Claim

KINDS = (
    "predicting the last word",
    "multiple choice",
    "following a document",
    "a given tone",
    "fluent and varied text",
    "arithmetic",
    "JSON, SQL and other constraints",
    "masked diffusion",
    "fewer passes",
)
"""Kinds of task, in the order of the table."""
OF_TASK = {"lambada_openai": 0, "arc_easy": 1, "boolq": 1, "piqa": 1, "gpqa_diamond_zeroshot": 1, "sudoku4": 7}
OF_KIND = {"conflict": 2, "scored": 4, "constrained": 6, "linear": 8}
OF_MEASURE = {"positive": 3, "nll": 4, "repeated_4": 4, "overlap": 4, "right": 5}
FIRST = "try first"
COLUMNS = {
    FIRST: ("supported",),
    "no useful gain": ("weaker", "not seen", "opposite"),
    "undecided": ("undecided",),
}
"""Columns of the table, and the verdicts that they show."""


def task_of(claim: Claim) -> str:
    """The kind of task that a claim is about, one of :data:`KINDS`.

    Raises:
        ValueError: the test is unknown; add it to this module.
    """
    test = claim.test
    for kinds, name in ((OF_TASK, test.get("task")), (OF_KIND, test["kind"]), (OF_MEASURE, test.get("measure"))):
        if name in kinds:
            return KINDS[kinds[str(name)]]
    raise ValueError(f"{claim.name}: the kind of task of this test is unknown; add it to {__name__}")


def advice(claims: Sequence[Claim], verdicts: Mapping[str, Mapping[str, Any] | None], pages: str = ".") -> str:
    """The table of what to try first.

    Each row is a kind of task. Within a cell, the largest difference in units of the smallest one that counts is first.

    Args:
        claims: all claims.
        verdicts: by name; None if a claim has not been run.
        pages: folder of the claims' pages, for links.
    """
    run = [claim for claim in claims if verdicts[claim.name] is not None]
    rows = [_row(kind, run, verdicts, pages) for kind in KINDS if any(task_of(claim) == kind for claim in run)]
    others = sorted({name for claim in run for name in mechanisms(claim)})
    shown = table(["for", *COLUMNS], rows, "l" * 4)
    if not others:
        return shown
    named = ", ".join(f"`{name}`" for name in others)
    return f"{shown}\n\nThese differ from their papers in a way that their pages name: {named}."


def _row(kind: str, claims: Sequence[Claim], verdicts: Mapping[str, Mapping[str, Any] | None], pages: str) -> list[str]:
    """The row of a kind of task, from the claims that have been run."""
    known = [(claim, verdicts[claim.name] or {}) for claim in claims if task_of(claim) == kind]
    known.sort(key=lambda pair: (-abs(pair[1]["difference"]) / pair[0].least, pair[0].name))
    row = [kind]
    for column, names in COLUMNS.items():
        entries = []
        for claim, verdict in known:
            if verdict["verdict"] in names:
                values = _values(claim, verdict) if column == FIRST else ""
                entries.append(f"[{_setting(claim)}]({pages}/{claim.name}.md){values}")
        row.append("; ".join(entries) or "–")
    return row


def mechanisms(claim: Claim) -> dict[str, str]:
    """What the methods that a claim tests do differently from their papers, by name of the method."""
    tested = claim.test["tested"].get("guidance") or ""
    names = [part.partition(":")[0].strip() for part in tested.split(" + ")]
    return catalogue.other_mechanisms(names)


def _setting(claim: Claim) -> str:
    """The guidance that was tested, or the claim's name if the baseline has the same guidance or there is none."""
    tested = claim.test["tested"].get("guidance")
    return claim.name if tested is None or claim.test["kind"] == "linear" else f"`{tested}`"


def _values(claim: Claim, verdict: Mapping[str, Any]) -> str:
    """The values of the tested setting and the baseline, which is named unless it is plain decoding."""
    baseline = claim.test["baseline"].get("guidance")
    if claim.direction == "same":
        return " as good as without" if baseline is None else f" as good as `{baseline}`"
    name = "" if baseline is None else f" (`{baseline}`)"
    return f" {number(verdict['tested'])} against {number(verdict['baseline'])}{name}"
