"""Pages of the claims and their verdicts, and an overview of all claims."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textguide.support.files import write_text

from ..reports.markdown import number, p_value, table
from .advice import mechanisms
from .claim import Claim, names, read_claim
from .kinds.base import SIDES
from .replicating import VERDICT, read_run
from .verdict import VERDICTS

OVERVIEW = "README.md"
ARROWS = {"higher": "above", "lower": "below", "same": "the same as"}


def write_pages(folder: Path, target: Path) -> None:
    """Write a page ``NAME.md`` for each claim and the overview ``README.md``, and remove pages of deleted claims.

    Args:
        folder: folder of the claims.
        target: folder of the pages.

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


def read_verdict(claim_folder: Path) -> dict[str, Any] | None:
    """The content of ``verdict.json``; None if the file does not exist."""
    file = claim_folder / VERDICT
    if not file.exists():
        return None
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return values


def overview(claims: list[Claim], verdicts: Mapping[str, Mapping[str, Any] | None]) -> str:
    """The table of all claims."""
    done = Counter(verdict["verdict"] for verdict in verdicts.values() if verdict is not None)
    papers = len({claim.paper for claim in claims})
    counted = ", ".join(f"{done[name]} {name}" for name in VERDICTS if done[name])
    run = sum(done.values())
    state = f"{run} of {len(claims)} have been run: {counted}." if run else "None of them has been run yet."
    rows = []
    for claim in claims:
        verdict = verdicts[claim.name]
        outcome = ["–"] * 3
        if verdict is not None:
            outcome = [f"**{verdict['verdict']}**", _difference(verdict), p_value(verdict["p_holm"])]
        rows.append([f"[{claim.name}]({claim.name}.md)", f"[{claim.paper}]({claim.link})", claim.claim, *outcome])
    head = f"{len(claims)} claims of {papers} papers, registered with their tests before anything was run. {state}"
    meanings = "\n".join(f"* **{name}**: {meaning}." for name, meaning in VERDICTS.items())
    claims_table = table(["name", "paper", "claim", "verdict", "difference [95%]", "p"], rows, "llllll")
    parts = ["# Claims of papers, tested", head, ABOUT, claims_table, "## The rule", RULE, meanings, SAME, COMMANDS]
    return "\n\n".join(parts) + "\n"


ABOUT = """\
The claims are tested with the models of this project: mostly SmolLM2-135M-Instruct on one CPU core, on tasks
that run in minutes. A verdict is about the claim *with this model and this test*; most papers used models ten to a
thousand times as large, and many generated images. Each page lists the differences."""
RULE = """\
Every test compares two settings on the same items. The difference has a 95% interval (paired bootstrap), and
its p-value is adjusted over all claims, whether they have been run or not (Holm). The difference is counted in the
claimed direction, and the smallest difference that counts was registered in advance. The verdicts are:"""
SAME = """\
If a claim is that two settings are *the same*, *supported* means that the whole interval lies within the smallest
difference that counts."""
COMMANDS = """\
## Reproduce

```bash
textguide replicate --plan           # passes, tokens and hours, before anything is run
textguide replicate --all            # an interrupted run is resumed, and ends in the same bytes
textguide replicate --pages docs/results/replications
```

`replications/NAME/claim.yaml` is the registration. The repository's history shows that it is older than `run.json`
(the values of each item and the versions) and `verdict.json` (the verdict by the rule) next to it. A claim that was
changed after its run is refused. To cite this table, see [CITATION.cff](../../../CITATION.cff)."""


def page(claim: Claim, run: Mapping[str, Any] | None, verdict: Mapping[str, Any] | None) -> str:
    """The page of one claim.

    Args:
        claim: the claim.
        run: the content of ``run.json``; None if the claim has not been run.
        verdict: the content of ``verdict.json``; None if there is no verdict yet.
    """
    parts = [
        f"# {claim.name}",
        f"> {claim.claim}",
        f"{claim.title}, [arXiv {claim.paper}]({claim.link}). "
        f"Place in the paper: {claim.where} Read for this test: {claim.read}.",
    ]
    if verdict is None or run is None:
        parts.append("**Not run yet.**")
    else:
        parts += _outcome(verdict)
    parts += _registration(claim)
    if run is not None:
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        parts.append(f"Run with {versions}.")
    parts.append(f"[All claims](README.md). `textguide replicate {claim.name}`")
    return "\n\n".join(parts) + "\n"


def _outcome(verdict: Mapping[str, Any]) -> list[str]:
    """The verdict, the values, and the number of claims in the correction."""
    row = [
        number(verdict["tested"]),
        number(verdict["baseline"]),
        _difference(verdict),
        p_value(verdict["p"]),
        p_value(verdict["p_holm"]),
        str(verdict["n"]),
    ]
    family = verdict["family"]
    return [
        f"**{verdict['verdict'].capitalize()}**: {VERDICTS[verdict['verdict']]}.",
        table(["tested", "baseline", "difference [95%]", "p", "p (Holm)", "items"], [row]),
        f"Holm's correction is over {family['claims']} claims, of which {family['run']} have been run.",
    ]


def _registration(claim: Claim) -> list[str]:
    """What was registered before the run."""
    test = dict(claim.test)
    sides = {side: test.pop(side) for side in SIDES}
    expected = (
        f"The tested value is expected to be {ARROWS[claim.direction]} the baseline's; the smallest difference that "
        f"counts is {claim.least:g}."
    )
    if claim.reported is not None:
        expected += f" The difference in the paper is {number(claim.reported, signed=True)}."
    items = {
        "Tested": _setting(sides["tested"]),
        "Baseline": _setting(sides["baseline"]),
        "Test": ", ".join(f"{key} `{_value(value)}`" for key, value in test.items()),
        "Differences": claim.differs,
        "Known before": claim.known,
    }
    differing = mechanisms(claim)
    if differing:
        items["Mechanism"] = " ".join(f"`{name}`: {text}." for name, text in differing.items())
    return ["## Registration", expected, "\n".join(f"* **{name}**: {text}" for name, text in items.items())]


def _difference(verdict: Mapping[str, Any]) -> str:
    """The difference with its interval."""
    difference, low, high = (number(verdict[name], signed=True) for name in ("difference", "low", "high"))
    return f"{difference} [{low}, {high}]"


def _setting(side: Mapping[str, Any]) -> str:
    guidance = "plain decoding" if side.get("guidance") is None else f"`{side['guidance']}`"
    more = [f"{key} `{_value(value)}`" for key, value in side.items() if key != "guidance"]
    if "guidance" not in side:
        return ", ".join(more)
    return ", ".join([guidance, *more])


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
