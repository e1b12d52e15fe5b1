"""What can be run for a claim. Each module has ``values(test, work)``, numbers of the same items under both sides, and
``plan(test)``, what that takes."""

from __future__ import annotations

import importlib
from types import ModuleType

KINDS = ("task", "texts", "scored", "conflict", "constrained", "linear")


def kind(name: str) -> ModuleType:
    """The module of a kind of test.

    Raises:
        ValueError: there is no such kind.
    """
    if name not in KINDS:
        raise ValueError(f"kind={name!r} is no kind of test; use one of {', '.join(KINDS)}")
    return importlib.import_module(f".{name}", __name__)
