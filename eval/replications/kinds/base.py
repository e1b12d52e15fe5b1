"""The shared parts of all kinds of tests: fields, models, journals, and estimates of their cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textguide.guidance import Guidance, split
from textguide.guidance.spec import parse
from textguide.models import bundled, loading
from textguide.models.adapters import load_further

from ...results.journal import JOURNAL, Journal

SIDES = ("tested", "baseline")


@dataclass(frozen=True)
class Plan:
    """The estimated cost of a test.

    Args:
        passes: calls of a model with a batch.
        tokens: positions that are read or written, over all rows and branches.
    """

    passes: int
    tokens: int

    def __add__(self, other: Plan) -> Plan:
        return Plan(self.passes + other.passes, self.tokens + other.tokens)


@dataclass(frozen=True)
class Work:
    """The folder of an unfinished run.

    Args:
        folder: of the journals.
        identity: everything that two runs must share for one to resume the other.
    """

    folder: Path
    identity: Mapping[str, Any]

    def journal(self) -> Journal:
        """The journal of a kind that does not run a sweep, which has its own."""
        return Journal.open(self.folder / JOURNAL, self.identity)


def field(test: Mapping[str, Any], side: str, name: str, default: Any = None) -> Any:
    """A field of one side, or of the test if the side does not have it."""
    return test[side].get(name, test.get(name, default))


def guidance_of(test: Mapping[str, Any], side: str, **values: str) -> Guidance | None:
    """The guidance of one side.

    Args:
        test: the test.
        side: one of :data:`SIDES`.
        **values: replace ``{name}`` in the text of the guidance.

    Raises:
        ValueError: the text is not a guidance.
    """
    text = field(test, side, "guidance")
    if text is None:
        return None
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return parse(text)


def check(test: Mapping[str, Any], fields: Sequence[str]) -> None:
    """Refuse fields that a kind does not have.

    Args:
        test: the test.
        fields: the fields of the kind.

    Raises:
        ValueError: there is another field.
    """
    unknown = {"test": set(test) - {*fields, "kind", *SIDES}}
    for side in SIDES:
        unknown[side] = set(test[side]) - {*fields, "guidance"}
    for part, names in unknown.items():
        if names:
            raise ValueError(f"{part}: {min(names)!r} is not a field of this kind; use {', '.join(sorted(fields))}")


def load(test: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer and further models of a test."""
    model, tokenizer = loading.load(test.get("model", bundled.NAME), device="cpu", dtype=test.get("dtype", "bfloat16"))
    return model, tokenizer, load_further(model, models_of(test), device="cpu", dtype=model.dtype)


def models_of(test: Mapping[str, Any]) -> dict[str, str]:
    """The further models of a test and of both its sides, by name."""
    models: dict[str, str] = {}
    for part in (test, *(test[side] for side in SIDES)):
        models |= part.get("models", {})
    return models


def recorded(
    work: Work, parts: Sequence[Any], measure: Callable[[str, Any, int], Sequence[float]]
) -> dict[str, list[float]]:
    """Measure both sides on all parts of the items, in turn; parts that the journal has are not measured again.

    Args:
        work: has the journal.
        parts: the items in parts.
        measure: called with a side, a part and its number; returns one number per item.

    Returns:
        By side one number per item.
    """
    values: dict[str, list[float]] = {side: [] for side in SIDES}
    with work.journal() as journal:
        for number, part in enumerate(parts):
            for side in SIDES:

                def compute(side: str = side, part: Any = part, number: int = number) -> list[float]:
                    return [float(value) for value in measure(side, part, number)]

                values[side] += journal.record(f"{number}/{side}", compute)
    return values


def chunks(items: Sequence[Any], size: int) -> list[list[Any]]:
    """The items in parts of ``size``; the last one may be shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def rows_of(guidance: Guidance | None) -> int:
    """Rows that are read per text: those of the model and of its branches, for every particle."""
    if guidance is None:
        return 1
    parts = split(guidance)
    branches = 0 if parts.branching is None else len(parts.branching.branches)
    return (1 + branches) * parts.particles
