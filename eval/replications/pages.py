"""Pages of claims and their verdicts, and the overview of all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textguide.support.files import write_text

from ..reports.markdown import number, p_value, table
from .claim import Claim, names, read_claim
from .replicating import VERDICT, read_run
from .verdict import VERDICTS

OVERVIEW = "README.md"
ARROWS = {"higher": "above", "lower": "below", "same": "the same as"}


def write_pages(folder: Path, target: Path) -> None:
    """Write ``NAME.md`` for each claim and ``README.md``, the overview, into ``target``; pages of claims that are gone
    are removed.

    Args:
        folder: of the claims.
        target: of the pages.

    Raises:
        ValueError: a claim cannot be read.
    """
    target.mkdir(parents=True, exist_ok=True)
    claims = [read_claim(folder / name) for name in names(folder)]
    verdicts = {claim.name: read_verdict(folder / claim.name) for claim in claims}
    for claim in claims:
        write_text(target / f"{claim.name}.md", page(claim, read_run(folder / claim.name), verdicts[claim.name]))
    write_text(target / OVERVIEW, overview(claims, verdicts))
    for path in target.glob("*.md"):
        if path.name != OVERVIEW and path.stem not in verdicts:
            path.unlink()


def read_verdict(place: Path) -> dict[str, Any] | None:
    """What ``verdict.json`` holds; None where there is none."""
    file = place / VERDICT
    if not file.exists():
        return None
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return values


def overview(claims: list[Claim], verdicts: Mapping[str, Mapping[str, Any] | None]) -> str:
    """The table of all claims."""
    done = Counter(found["verdict"] for found in verdicts.values() if found is not None)
    papers = len({claim.paper for claim in claims})
    counted = ", ".join(f"{done[name]} {name}" for name in VERDICTS if done[name])
    run = sum(done.values())
    state = f"{run} of {len(claims)} have been run: {counted}." if run else "None has been run yet."
    rows = []
    for claim in claims:
        found = verdicts[claim.name]
        rows.append(
            [
                f"[{claim.name}]({claim.name}.md)",
                f"[{claim.paper}]({claim.link})",
                claim.claim,
                *(["–"] * 3 if found is None else [f"**{found['verdict']}**", _ends(found), p_value(found["p_holm"])]),
            ]
        )
    head = f"{len(claims)} claims of {papers} papers, written down with their tests before anything was run. {state}"
    means = "\n".join(f"* **{name}**: {meaning}." for name, meaning in VERDICTS.items())
    shown = table(["claim", "paper", "what is claimed", "verdict", "difference [95%]", "p"], rows, "llllll")
    parts = ["# Claims of papers, tested here", head, ABOUT, shown, "## The rule", RULE, means, SAME, MADE]
    return "\n\n".join(parts) + "\n"


ABOUT = """\
A paper's claim is tested on what exists here: mostly SmolLM2-135M-Instruct on one CPU core, on tasks that run
in minutes. A verdict is about the claim *on this model and this test*; most papers used models ten to a
thousand times as large, and many made images. Each page says what differs."""
RULE = """\
Every test compares two settings on the same items. The difference has a 95% interval (paired bootstrap), and
its p-value is adjusted over all claims, run or not (Holm). With the difference counted in the direction
claimed, and the smallest difference that would count fixed beforehand:"""
SAME = """\
Of a claim that two settings are *the same*, *supported* says that the whole interval lies within the smallest
difference that counts."""
MADE = """\
## How it was made

```bash
textguide replicate --plan           # passes, tokens and hours, before anything starts
textguide replicate --all            # a killed run goes on where it was, to the same bytes
textguide replicate --pages docs/results/replications
```

`replications/NAME/claim.yaml` is the registration, and the repository's history shows that it is older than
`run.json` beside it (the values of each item and the versions) and `verdict.json` (by the rule). A claim that
was changed after its run is refused. To cite this table, see [CITATION.cff](../../../CITATION.cff)."""


def page(claim: Claim, run: Mapping[str, Any] | None, found: Mapping[str, Any] | None) -> str:
    """One claim."""
    test = dict(claim.test)
    sides = {side: test.pop(side) for side in ("tested", "baseline")}
    lines = [
        f"# {claim.name}",
        f"> {claim.claim}",
        f"{claim.title}, [arXiv {claim.paper}]({claim.link}). "
        f"Where it stands: {claim.where} Read for this: {claim.read}.",
    ]
    if found is None or run is None:
        lines.append("**Not run yet.**")
    else:
        lines += [
            f"**{found['verdict'].capitalize()}**: {VERDICTS[found['verdict']]}.",
            table(
                ["tested", "baseline", "difference [95%]", "p", "p (Holm)", "items"],
                [
                    [
                        number(found["tested"]), number(found["baseline"]), _ends(found), p_value(found["p"]),
                        p_value(found["p_holm"]), str(found["n"]),
                    ]
                ],
            ),
            f"Holm's correction over {found['family']['claims']} claims, {found['family']['run']} of them run.",
        ]  # fmt: skip
    reported = (
        "" if claim.reported is None else f" The paper's own difference is {number(claim.reported, signed=True)}."
    )
    lines += [
        "## What was registered",
        f"The tested value is {ARROWS[claim.direction]} the baseline's; the smallest difference that counts is "
        f"{claim.least:g}.{reported}",
        "\n".join(
            [
                f"* **Tested**: {_setting(sides['tested'])}",
                f"* **Baseline**: {_setting(sides['baseline'])}",
                f"* **Test**: {', '.join(f'{key} `{_value(value)}`' for key, value in test.items())}",
                f"* **What differs**: {claim.differs}",
                f"* **What was known**: {claim.known}",
            ]
        ),
    ]
    if run is not None:
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        lines.append(f"Made with {versions}.")
    lines.append(f"[All claims](README.md). `textguide replicate {claim.name}`")
    return "\n\n".join(lines) + "\n"


def _ends(found: Mapping[str, Any]) -> str:
    shown = [number(found[name], signed=True) for name in ("difference", "low", "high")]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _setting(side: Mapping[str, Any]) -> str:
    guidance = "plain decoding" if side.get("guidance") is None else f"`{side['guidance']}`"
    more = [f"{key} `{_value(value)}`" for key, value in side.items() if key != "guidance"]
    if "guidance" not in side:
        return ", ".join(more)
    return ", ".join([guidance, *more])


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
