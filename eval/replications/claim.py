"""A registered claim: ``NAME/claim.yaml``, which is written before the run and never changed afterwards."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textguide.support.checks import is_number

CLAIM = "claim.yaml"
DIRECTIONS = ("higher", "lower", "same")
READ = ("full text", "tables", "abstract")
"""Parts of a paper that may have been read for the registration."""


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, and its test in this project.

    Args:
        name: name of the folder.
        paper: arXiv number.
        title: title of the paper.
        claim: the claim in one sentence.
        where: its place in the paper: table, figure, abstract.
        read: the part of the paper that was read, one of :data:`READ`.
        differs: differences between the test and the paper's experiment.
        known: what was known about the outcome before the registration.
        direction: ``higher``, ``lower`` or ``same``: the tested value compared with the baseline's.
        least: the smallest difference that counts; for ``same``, the smallest difference that refutes the claim.
        test: the test; see the modules of :mod:`textguide.eval.replications.kinds`.
        reported: the paper's own difference, in the units of the metric; None if the paper does not report one.
        minutes: upper limit of the cost on one core.
        digest: SHA-256 of the file.

    Raises:
        ValueError: a field is invalid; the message names the file and the field.
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
        for name in ("paper", "title", "claim", "where", "differs", "known"):
            value = getattr(self, name)
            self._require(name, isinstance(value, str) and bool(value.strip()), "must be a text; quote numbers")
        self._require("direction", self.direction in DIRECTIONS, f"must be one of {', '.join(DIRECTIONS)}")
        self._require("read", self.read in READ, f"must be one of {', '.join(READ)}")
        for name in ("least", "minutes"):
            value = getattr(self, name)
            self._require(name, is_number(value) and 0 < value < math.inf, "must be a number above 0")
        is_reported = self.reported is None or is_number(self.reported)
        self._require("reported", is_reported, "must be a number, or be left out")
        is_test = isinstance(self.test, Mapping) and "kind" in self.test
        self._require("test", is_test, "must be a mapping with a kind")
        for side in ("tested", "baseline"):
            is_side = isinstance(self.test.get(side), Mapping)
            self._require("test", is_side, f"must have {side}: a mapping with a guidance, which may be null")

    def _require(self, name: str, valid: bool, remedy: str) -> None:
        if not valid:
            raise ValueError(f"{self.name}/{CLAIM}: {name}={getattr(self, name)!r} {remedy}")

    @property
    def link(self) -> str:
        """The paper's page."""
        return f"https://arxiv.org/abs/{self.paper}"


def read_claim(folder: Path) -> Claim:
    """Read the claim in a folder.

    Raises:
        ValueError: there is no claim, or it is invalid; the message names the file and the field.
    """
    import yaml

    file = folder / CLAIM
    if not file.is_file():
        raise ValueError(f"{folder} does not have {CLAIM}; name a folder with a registered claim")
    data = file.read_bytes()
    try:
        values = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold the fields of a claim")
    known = set(Claim.__dataclass_fields__) - {"name", "digest"}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{file}: {unknown[0]!r} is not a field of a claim; use {', '.join(sorted(known))}")
    try:
        return Claim(name=folder.name, digest=hashlib.sha256(data).hexdigest(), **values)
    except TypeError as error:  # a field is missing
        raise ValueError(f"{file}: {str(error).split('__init__() ')[-1]}") from error


def names(folder: Path) -> list[str]:
    """The names of the claims in ``folder``, sorted.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"--folder {folder} is not a folder; name the one that holds the claims")
    return sorted(path.parent.name for path in folder.glob(f"*/{CLAIM}"))
