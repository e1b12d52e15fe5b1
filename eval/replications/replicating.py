"""Running registered claims: the estimate of the cost, the run, and the verdicts on the whole family."""

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
from .verdict import adjusted, effect, verdict_record

RUN = "run.json"
VERDICT = "verdict.json"
WORK = ".work"
"""Folder of an unfinished run next to the claim; the repository ignores it."""
TOKENS_PER_SECOND = {"smollm2": 450.0, "smollm2-small": 20_000.0, "sudoku4": 6_000.0, "molecules": 4_000.0}
"""Approximate positions per second on one core, for SmolLM2-135M in bfloat16; generation is slower."""
DECIMALS = 9
"""Decimals of the values in ``run.json``: more than a metric needs, and few enough to hide the order of summation."""


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a claim.

    Args:
        name: name of the claim.
        passes: calls of models with a batch.
        tokens: positions.
        hours: on one core.
        done: whether the claim has been run.
    """

    name: str
    passes: int
    tokens: int
    hours: float
    done: bool


def estimates(folder: Path, chosen: Sequence[str]) -> list[Estimate]:
    """Estimate the cost of claims, before anything is run.

    Args:
        folder: folder of the claims.
        chosen: their names.

    Raises:
        ValueError: a claim cannot be read.
    """
    results = []
    for name in chosen:
        claim = read_claim(folder / name)
        plan: Plan = kind(str(claim.test["kind"])).plan(claim.test)
        speed = TOKENS_PER_SECOND.get(str(claim.test.get("model", "smollm2")), 450.0)
        done = (folder / name / RUN).exists()
        results.append(Estimate(name, plan.passes, plan.tokens, plan.tokens / speed / 3600, done))
    return results


def replicate(
    folder: Path,
    name: str,
    *,
    data: str | None = None,
    draft: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run one claim and write ``run.json`` next to it.

    An unfinished run is resumed, and ends in the same bytes as an uninterrupted one.

    Args:
        folder: folder of the claims.
        name: name of the claim.
        data: folder of the tasks' data; None: ``TEXTGUIDE_DATA``.
        draft: also run a claim that is not committed.
        progress: called with a line if the claim has been run already.

    Returns:
        The content of ``run.json``. A claim that has been run is not run again.

    Raises:
        ValueError: the claim is invalid, was changed after its run started, is not committed, or its test names
            something that does not exist.
    """
    claim_folder = folder / name
    claim = read_claim(claim_folder)
    run = read_run(claim_folder)
    if run is not None:
        _check_unchanged(claim, run["digest"])
        progress(f"{name} has been run")
        return run
    if not draft:
        _check_committed(claim_folder / CLAIM)
    module = kind(str(claim.test["kind"]))
    check(claim.test, module.FIELDS)
    module.plan(claim.test)  # parses the guidances, so that invalid ones are refused before anything is run
    digest = claim_folder / WORK / "digest"
    if digest.exists():
        _check_unchanged(claim, digest.read_text(encoding="utf-8").strip())
    digest.parent.mkdir(exist_ok=True)
    write_bytes(digest, f"{claim.digest}\n".encode())
    work = Work(claim_folder / WORK, {"claim": name, "digest": claim.digest})
    run = record(claim, module.values(claim.test, work, data))
    write_json(claim_folder / RUN, run)
    return run


def record(claim: Claim, values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The content of ``run.json``, without times, so that the same run gives the same bytes.

    Args:
        claim: the claim.
        values: by side one number per item.
    """
    rounded = {side: np.round(np.asarray(values[side], dtype=np.float64), DECIMALS) for side in SIDES}
    versions, machine = environment()
    return {
        "format": FORMAT,
        "claim": claim.name,
        "digest": claim.digest,
        "direction": claim.direction,
        "least": claim.least,
        "effect": asdict(effect(rounded["tested"], rounded["baseline"], int(claim.test.get("seed", 0)))),
        "values": {side: rounded[side].tolist() for side in SIDES},
        "versions": versions,
        "machine": machine,
    }


def judge(folder: Path) -> dict[str, dict[str, Any]]:
    """Write ``verdict.json`` next to every claim that has been run, Holm-adjusted over all claims of ``folder``.

    Returns:
        The verdicts by name.

    Raises:
        ValueError: a claim was changed after its run.
    """
    claims = names(folder)
    runs: dict[str, dict[str, Any]] = {}
    for name in claims:
        run = read_run(folder / name)
        if run is not None:
            _check_unchanged(read_claim(folder / name), run["digest"])
            runs[name] = run
    p_holm = adjusted({name: run["effect"]["p"] for name, run in runs.items()}, len(claims))
    verdicts = {name: verdict_record(run, p_holm[name], len(claims), len(runs)) for name, run in runs.items()}
    for name, values in verdicts.items():
        file = folder / name / VERDICT
        data = json_bytes(plain(values), 1) + b"\n"
        if not file.exists() or file.read_bytes() != data:  # unchanged files keep their time
            write_bytes(file, data)
    return verdicts


def read_run(claim_folder: Path) -> dict[str, Any] | None:
    """The content of ``run.json``; None if the claim has not been run.

    Raises:
        ValueError: the file was not written by :func:`replicate`.
    """
    file = claim_folder / RUN
    if not file.exists():
        return None
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        values["digest"], values["effect"]["p"]  # KeyError if they are missing
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} was not written by textguide replicate; move it away to run the claim") from error
    return values


def _check_unchanged(claim: Claim, digest: str) -> None:
    if claim.digest != digest:
        raise ValueError(
            f"{claim.name}/{CLAIM} was changed after its run started; restore it, or register the new claim under "
            "another name"
        )


def _check_committed(file: Path) -> None:
    """A claim is registered when it is committed; outside of a repository this cannot be checked."""
    git = ["git", "-C", str(file.parent)]
    try:
        if subprocess.run([*git, "rev-parse"], capture_output=True).returncode:
            return
        status = subprocess.run(
            [*git, "status", "--porcelain", "--ignored", "--", file.name],
            capture_output=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # do not disturb another git process
        )
    except OSError:  # git is not installed
        return
    if status.stdout.strip():
        raise ValueError(f"{file} is not committed; commit it before the run, or add --draft to run it anyway")
