"""The results of ``scripts/conformance.py`` as lines and as the page ``docs/models.md``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from .checks import CHECKS

BEGIN = "<!-- made by `python scripts/conformance.py` -->"
END = "<!-- end -->"
TITLES = {
    "batch": "batch", "padding": "left padding", "one pass": "one pass", "drop-in": "drop-in", "score": "score",
    "schedule": "schedule", "speculation": "speculation",
}  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """One class in the terminal."""
    for key in ("not_built", "not_run"):
        if key in row:
            return f"{row['title']}: {key.replace('_', ' ')}: {row[key]}"
    results = [f"{check} {cell['result']}" for check, cell in row["cells"].items() if cell["result"] != "exact"]
    details = [f"\n    {check}: {cell['detail']}" for check, cell in row["cells"].items() if cell["result"] != "exact"]
    said = "exact" if not results else ", ".join(results)
    note = f"\n    ({row['note']})" if row.get("note") else ""
    return f"{row['title']} [{row.get('seconds', 0):.0f} s]: {said}{note}{''.join(details)}"


def counts(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many classes and cells there are of each kind. Cells of former checks do not count."""
    cells = [cell["result"] for row in rows for check, cell in row["cells"].items() if check in CHECKS]
    return {
        "classes tried": sum(bool(row["cells"]) for row in rows),
        "exact cells": cells.count("exact"),
        "refused cells": cells.count("refused"),
        "wrong cells": cells.count("wrong") + cells.count("error"),
        "cells that need an image": cells.count("needs an image"),
        "classes not run": sum("not_run" in row for row in rows),
        "classes not built": sum("not_built" in row for row in rows),
    }


def page(report: dict[str, Any], before: str = "") -> str:
    """The page with a new table; ``before`` is the current page."""
    made = f"{BEGIN}\n\n{tables(report)}\n\n{END}"
    if BEGIN not in before:
        return f"{before}{made}\n"
    head, rest = before.split(BEGIN, 1)
    return f"{head}{made}{rest.split(END, 1)[1]}"


def tables(report: dict[str, Any]) -> str:
    """Counts and versions, the table by family, the reasons of refusals, and what was left out."""
    rows = report["models"]
    tried = [row for row in rows if row["cells"]]
    reasons: dict[str, int] = {}
    notes: dict[str, int] = {}
    padded: dict[str, int] = {}
    body = []
    for family, members in groupby(tried, key=lambda row: row["family"]):
        for number, row in enumerate(members):
            cells = [_cell(row, row["cells"].get(check), reasons) for check in CHECKS]
            cells.append(_own_lengths(row, padded))
            title = f"`{row['title']}`" if not row["variant"] else f"`{row['name']}`, {row['variant']}"
            if row["note"]:
                title += f" [{chr(96 + notes.setdefault(_general(row, row['note']), len(notes) + 1))}]"
            body.append(f"| {family if not number else ''} | {title} | {' | '.join(cells)} |")
    versions = report["versions"]
    count = counts(rows)
    known = [row for row in tried if row.get("facts")]
    parts = [
        f"{count['classes tried']} classes of transformers {versions['transformers']} tried, with torch "
        f"{versions['torch']} in float32: {count['exact cells']} cells exact, {count['refused cells']} refused, "
        f"{count['wrong cells']} wrong; {count['cells that need an image']} could not be tried without an image. "
        f"Rows keep their own lengths in {sum(not row['facts']['stays_padded'] for row in known)} of {len(known)} "
        "classes.",
        "\n".join(
            [
                f"| family | class | {' | '.join(TITLES[check] for check in CHECKS)} | own lengths |",
                f"|---|---|{'---|' * len(CHECKS)}---|",
                *body,
            ]
        ),
    ]
    if reasons:
        parts.append("Refused, with these messages:")
        parts.append("\n".join(f"{number}. {reason}" for reason, number in reasons.items()))
    if padded:
        parts.append("Rows of different lengths are padded, or have passes of their own:")
        parts.append("\n".join(f"* ({number}) {reason}" for reason, number in padded.items()))
    if notes:
        parts.append("For these classes, the reference is transformers' own cached decoding of one row:")
        parts.append("\n".join(f"* [{chr(96 + number)}] {note}" for note, number in notes.items()))
    for key, title in (("not_run", "Built, but not run:"), ("not_built", "Not built:")):
        left = [row for row in rows if key in row]
        if left:
            parts.append(title)
            parts.append("\n".join(f"* `{row['title']}`: {row[key]}" for row in left))
    return "\n\n".join(parts)


def _cell(row: dict[str, Any], cell: dict[str, str] | None, reasons: dict[str, int]) -> str:
    if cell is None:
        return ""
    if cell["result"] != "refused":
        return {"exact": "✓", "needs an image": "needs an image"}.get(cell["result"], f"**{cell['result']}**")
    return f"refused {reasons.setdefault(_general(row, cell['detail']), len(reasons) + 1)}"


def _own_lengths(row: dict[str, Any], padded: dict[str, int]) -> str:
    """Whether rows keep their own lengths, or the number of the reason why they do not."""
    if not row.get("facts"):
        return ""
    reason = row["facts"]["stays_padded"]
    return f"padded ({padded.setdefault(reason, len(padded) + 1)})" if reason else "✓"


def _general(row: dict[str, Any], text: str) -> str:
    """A message without what is particular to one class."""
    text = text.replace(row["name"], "the model").replace("|", "\\|")
    return re.sub(r"by [\d.e+-]+ nats", "by more than rounding", text)
