"""What to try first, by kind of task, as it follows from the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..reports.markdown import number, table
from .claim import Claim

KINDS = (
    "the word that a text leads up to",
    "one of several answers",
    "a document against what the model remembers",
    "a text with a given tone",
    "fluent and varied text",
    "sums",
    "JSON, SQL and other forms",
    "a masked canvas",
    "fewer passes",
)
"""Kinds of task, in the order of the table."""
OF_TASK = {"lambada_openai": 0, "arc_easy": 1, "boolq": 1, "piqa": 1, "gpqa_diamond_zeroshot": 1, "sudoku4": 7}
OF_KIND = {"conflict": 2, "scored": 4, "constrained": 6, "linear": 8}
OF_MEASURE = {"positive": 3, "nll": 4, "repeated_4": 4, "overlap": 4, "right": 5}
FOR = ("supported", "weaker")
AGAINST = ("opposite", "not seen")


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
    """The table: for each kind of task what gained beyond chance, the largest gain in units of the smallest difference
    that counts first, then what did not gain, and what more items would have to decide.

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
            "; ".join(_shown(one, found, pages) for one, found in known if found["verdict"] in names) or "–"
            for names in (FOR, AGAINST, ("undecided",))
        ]
        if known:
            rows.append([kind, *cells])
    return table(["for", "try first", "no gain here, or a loss", "undecided"], rows, "llll")


def _shown(claim: Claim, found: Mapping[str, Any], pages: str) -> str:
    """``setting 0.40 against 0.30``: what was tested, and what it was held against."""
    tested, baseline = _setting(claim.test["tested"]), _setting(claim.test["baseline"])
    linked = f"[{tested}]({pages}/{claim.name}.md)"
    if claim.direction == "same":
        return f"{linked} as good as {baseline}"
    held = "" if baseline == PLAIN else f" ({baseline})"
    return f"{linked} {number(found['tested'])} against {number(found['baseline'])}{held}"


PLAIN = "plain"


def _setting(side: Mapping[str, Any]) -> str:
    more = [f"`{key}={str(value).removesuffix(',none')}`" for key, value in side.items() if key != "guidance"]
    return ", ".join(part for part in (f"`{side['guidance']}`" if side.get("guidance") else "", *more) if part) or PLAIN
