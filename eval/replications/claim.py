"""A registered claim: ``NAME/claim.yaml``, written before the run and never changed after it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CLAIM = "claim.yaml"
DIRECTIONS = ("higher", "lower", "same")
READ = ("full text", "tables", "abstract")
"""What of a paper was read for the registration."""


@dataclass(frozen=True)
class Claim:
    """What a paper claims, and how it is tested here.

    Args:
        name: of the folder.
        paper: arXiv number.
        title: of the paper.
        claim: the sentence claimed, in our words or the paper's.
        where: where it stands: table, figure, abstract.
        read: what of the paper was read: one of :data:`READ`.
        differs: what is different here from the paper's experiment.
        known: what was known of the outcome here before the registration.
        direction: ``higher``, ``lower`` or ``same``: the tested value against the baseline's.
        least: the smallest difference that would count; for ``same`` the largest that would not.
        test: what is run; see the modules of :mod:`textguide.eval.replications.kinds`.
        reported: the paper's own difference, in the units of the metric; None where it has none.
        minutes: what it may cost on one core.
        digest: SHA-256 of the file.
    """

    name: str
    paper: str
    title: str
    claim: str
    where: str
    read: str
    differs: str
    known: str
    direction: str
    least: float
    test: Mapping[str, Any]
    reported: float | None = None
    minutes: float = 4.0
    digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        def refuse(name: str, remedy: str) -> ValueError:
            return ValueError(f"{self.name}/{CLAIM}: {name}={getattr(self, name)!r} {remedy}")

        for name in ("paper", "title", "claim", "where", "differs", "known"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise refuse(name, "must be a text; quote numbers")
        if self.direction not in DIRECTIONS:
            raise refuse("direction", f"must be one of {', '.join(DIRECTIONS)}")
        if self.read not in READ:
            raise refuse("read", f"must be one of {', '.join(READ)}")
        for name in ("least", "minutes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise refuse(name, "must be a number above 0")
        if self.reported is not None and not isinstance(self.reported, (int, float)):
            raise refuse("reported", "must be a number, or be left out")
        if not isinstance(self.test, Mapping) or "kind" not in self.test:
            raise refuse("test", "must be a mapping with a kind")
        for side in ("tested", "baseline"):
            if not isinstance(self.test.get(side), Mapping):
                raise refuse("test", f"must have {side}: a mapping with a guidance, which may be null")

    @property
    def link(self) -> str:
        """The paper's page."""
        return f"https://arxiv.org/abs/{self.paper}"


def read_claim(folder: Path) -> Claim:
    """The claim in a folder.

    Raises:
        ValueError: there is none, or it is not one; the message names the file and the field.
    """
    import yaml

    file = folder / CLAIM
    if not file.is_file():
        raise ValueError(f"{folder} has no {CLAIM}; name a folder with a registered claim")
    data = file.read_bytes()
    try:
        values = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold the fields of a claim")
    known = set(Claim.__dataclass_fields__) - {"name", "digest"}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{file}: {unknown[0]!r} is no field of a claim; use {', '.join(sorted(known))}")
    try:
        return Claim(name=folder.name, digest=hashlib.sha256(data).hexdigest(), **values)
    except TypeError as error:
        raise ValueError(f"{file}: {str(error).split('__init__() ')[-1]}") from error


def names(folder: Path) -> list[str]:
    """The claims in ``folder``, sorted.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"--folder {folder} is not a folder; name the one that holds the claims")
    return sorted(path.parent.name for path in folder.glob(f"*/{CLAIM}"))
