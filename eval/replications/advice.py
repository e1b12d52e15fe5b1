"""Which method to try first for each kind of task, according to the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
    """The one of :data:`KINDS` that a claim is about.

    Raises:
        ValueError: its test belongs to none; add it here.
    """
    test = claim.test
    for known, name in ((OF_TASK, test.get("task")), (OF_KIND, test["kind"]), (OF_MEASURE, test.get("measure"))):
        if name in known:
            return KINDS[known[str(name)]]
    raise ValueError(f"{claim.name}: no kind of task is known for this test; add it to {__name__}")


def advice(claims: Sequence[Claim], verdicts: Mapping[str, Mapping[str, Any] | None], pages: str = ".") -> str:
    """The table: for each kind of task what was supported, with its values, the largest gain in units of the smallest
    difference that counts first; then what did not gain enough, and what more items would have to decide.

    Args:
        claims: all.
        verdicts: by name; None where a claim has not been run.
        pages: the folder of the claims' pages, for links.
    """
    rows = []
    for kind in KINDS:
        known = [(one, found) for one in claims if task_of(one) == kind and (found := verdicts[one.name]) is not None]
        known.sort(key=lambda pair: (-abs(pair[1]["difference"]) / pair[0].least, pair[0].name))
        cells = [
            "; ".join(
                f"[{_setting(one)}]({pages}/{one.name}.md){_values(one, found) if column == FIRST else ''}"
                for one, found in known
                if found["verdict"] in names
            )
            for column, names in COLUMNS.items()
        ]
        if known:
            rows.append([kind, *(cell or "–" for cell in cells)])
    return table(["for", *COLUMNS], rows, "l" * 4)


def _setting(claim: Claim) -> str:
    """The guidance that was tested; the claim's name where that alone does not tell it from the baseline."""
    tested = claim.test["tested"].get("guidance")
    return claim.name if tested is None or claim.test["kind"] == "linear" else f"`{tested}`"


def _values(claim: Claim, found: Mapping[str, Any]) -> str:
    """Of the tested setting and of its baseline, which is named where it is not plain decoding."""
    held = claim.test["baseline"].get("guidance")
    named = "" if held is None else f" (`{held}`)"
    if claim.direction == "same":
        return f" as good as `{held}`" if held else " as good as without"
    return f" {number(found['tested'])} against {number(found['baseline'])}{named}"
