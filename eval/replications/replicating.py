"""Running registered claims: what it takes, the run, and the verdicts of the whole family."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from textguide.support.files import json_bytes, plain, write_bytes, write_json

from ..results.folder import FORMAT
from ..results.machine import environment
from .claim import CLAIM, Claim, names, read_claim
from .kinds import kind
from .kinds.base import SIDES, Plan, Work, check
from .verdict import adjusted, effect, judged

RUN = "run.json"
VERDICT = "verdict.json"
WORK = ".work"
"""What a run has done so far, beside the claim; not for the repository."""
TOKENS_A_SECOND = {"smollm2": 450.0, "smollm2-small": 20_000.0, "sudoku4": 6_000.0, "molecules": 4_000.0}
"""Positions of a model on one core, about: SmolLM2-135M in bfloat16, fewer where texts are written token by token."""
KEPT = 9
"""Decimals of the values that are written: more than any metric has, fewer than sums in another order change."""


@dataclass(frozen=True)
class Estimate:
    """What a claim takes.

    Args:
        name: of the claim.
        passes: batches that models are called on, about.
        tokens: positions, about.
        hours: on one core, about.
        done: whether it has been run.
    """

    name: str
    passes: int
    tokens: int
    hours: float
    done: bool


def estimates(folder: Path, chosen: Sequence[str]) -> list[Estimate]:
    """What claims take, before anything starts.

    Raises:
        ValueError: a claim cannot be read.
    """
    found = []
    for name in chosen:
        claim = read_claim(folder / name)
        plan: Plan = kind(str(claim.test["kind"])).plan(claim.test)
        speed = TOKENS_A_SECOND.get(str(claim.test.get("model", "smollm2")), 450.0)
        done = (folder / name / RUN).exists()
        found.append(Estimate(name, plan.passes, plan.tokens, plan.tokens / speed / 3600, done))
    return found


def replicate(
    folder: Path,
    name: str,
    *,
    data: str | None = None,
    draft: bool = False,
    said: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run one claim and write ``run.json`` beside it; a killed run goes on where it was, to the same bytes.

    Args:
        folder: of the claims.
        name: of the claim.
        data: folder of the tasks' data; None: ``TEXTGUIDE_DATA``.
        draft: run a claim that is not committed, too.
        said: gets a line where there is something to say.

    Returns:
        What ``run.json`` holds. A claim that has been run is not run again.

    Raises:
        ValueError: the claim is no claim, was changed after its run began, is not committed, or its test names
            something that does not exist.
    """
    place = folder / name
    claim = read_claim(place)
    known = read_run(place)
    if known is not None:
        _unchanged(claim, known["digest"])
        said(f"{name} has been run")
        return known
    if not draft:
        _committed(place / CLAIM)
    module = kind(str(claim.test["kind"]))
    check(claim.test, module.FIELDS)
    module.plan(claim.test)  # a guidance that cannot be read is refused before anything has begun
    begun = place / WORK / "digest"
    if begun.exists():
        _unchanged(claim, begun.read_text(encoding="utf-8").strip())
    begun.parent.mkdir(exist_ok=True)
    write_bytes(begun, f"{claim.digest}\n".encode())
    work = Work(place / WORK, {"claim": name, "digest": claim.digest})
    values = module.values(claim.test, work, data)
    found = record(claim, values)
    write_json(place / RUN, found)
    return found


def record(claim: Claim, values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What ``run.json`` holds: no time of day and no duration, so that the same run gives the same bytes."""
    kept = {side: np.round(np.asarray(values[side], dtype=np.float64), KEPT) for side in SIDES}
    versions, machine = environment()
    return {
        "format": FORMAT,
        "claim": claim.name,
        "digest": claim.digest,
        "direction": claim.direction,
        "least": claim.least,
        "effect": asdict(effect(kept["tested"], kept["baseline"], int(claim.test.get("seed", 0)))),
        "values": {side: kept[side].tolist() for side in SIDES},
        "versions": versions,
        "machine": machine,
    }


def judge(folder: Path) -> dict[str, dict[str, Any]]:
    """Write ``verdict.json`` beside every claim that has been run, Holm-adjusted over all claims of ``folder``.

    Returns:
        The verdicts by name.

    Raises:
        ValueError: a claim was changed after its run.
    """
    every = names(folder)
    runs: dict[str, dict[str, Any]] = {}
    for name in every:
        run = read_run(folder / name)
        if run is not None:
            _unchanged(read_claim(folder / name), run["digest"])
            runs[name] = run
    p_holm = adjusted({name: run["effect"]["p"] for name, run in runs.items()}, len(every))
    found = {name: judged(run, p_holm[name], len(every), len(runs)) for name, run in runs.items()}
    for name, values in found.items():
        data = json_bytes(plain(values), 1) + b"\n"
        if not (folder / name / VERDICT).exists() or (folder / name / VERDICT).read_bytes() != data:
            write_bytes(folder / name / VERDICT, data)
    return found


def read_run(place: Path) -> dict[str, Any] | None:
    """What ``run.json`` holds; None where the claim has not been run.

    Raises:
        ValueError: it was not written by this.
    """
    file = place / RUN
    if not file.exists():
        return None
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        values["digest"], values["effect"]["p"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} was not written by textguide replicate; move it away to run the claim") from error
    return values


def _unchanged(claim: Claim, digest: str) -> None:
    if claim.digest != digest:
        raise ValueError(
            f"{claim.name}/{CLAIM} was changed after its run began; restore it, or register what you want to test "
            "under another name"
        )


def _committed(file: Path) -> None:
    """A claim is registered when it is committed; outside a repository nothing can be said."""
    git = ["git", "-C", str(file.parent)]
    try:
        if subprocess.run([*git, "rev-parse"], capture_output=True).returncode:
            return
        clean = subprocess.run(
            [*git, "status", "--porcelain", "--ignored", "--", file.name], capture_output=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except OSError:  # no git
        return
    if clean.stdout.strip():
        raise ValueError(f"{file} is not committed; commit it before the run, or add --draft to run it all the same")
