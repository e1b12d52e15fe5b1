"""Kinds of tests of a claim. Each module has ``values(test, work, data)``, numbers of the same items under both sides,
``plan(test)``, an estimate of the cost, and ``FIELDS``, the fields of a test."""

from __future__ import annotations

import importlib
from types import ModuleType

KINDS = ("task", "texts", "scored", "conflict", "constrained", "linear")


def kind(name: str) -> ModuleType:
    """The module of a kind of test.

    Raises:
        ValueError: the kind is unknown.
    """
    if name not in KINDS:
        raise ValueError(f"kind={name!r} is not a kind of test; use one of {', '.join(KINDS)}")
    return importlib.import_module(f".{name}", __name__)
