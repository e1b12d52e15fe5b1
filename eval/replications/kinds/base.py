"""What the kinds of tests share: their fields, models, journals, and the estimate of what they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import textguide
from textguide.guidance import Guidance, split
from textguide.guidance.spec import parse
from textguide.models import bundled
from textguide.models.adapters import load_further

from ...results.journal import Journal

SIDES = ("tested", "baseline")


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Args:
        passes: times that a model is called on a batch, about.
        tokens: positions that are read or written, over all rows and branches, about.
    """

    passes: int
    tokens: int

    def __add__(self, other: Plan) -> Plan:
        return Plan(self.passes + other.passes, self.tokens + other.tokens)


@dataclass(frozen=True)
class Work:
    """Where a run keeps what it has done.

    Args:
        folder: of the journals.
        identity: what has to be equal for a journal to be gone on with.
    """

    folder: Path
    identity: Mapping[str, Any]

    def journal(self) -> Journal:
        """The journal of a kind that keeps its own."""
        return Journal.open(self.folder / "journal.jsonl", self.identity)


def field(test: Mapping[str, Any], side: str, name: str, default: Any = None) -> Any:
    """A field of one side, else of the test."""
    return test[side].get(name, test.get(name, default))


def guidance_of(test: Mapping[str, Any], side: str, **more: str) -> Guidance | None:
    """The guidance of one side; ``{name}`` in its text stands for one of ``more``.

    Raises:
        ValueError: the text is no guidance.
    """
    text = field(test, side, "guidance")
    for name, value in more.items():
        text = None if text is None else text.replace("{" + name + "}", value)
    return None if text is None else parse(text)


def check(test: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse fields that a kind does not know.

    Raises:
        ValueError: there is one.
    """
    allowed = {*known, "kind", "tested", "baseline"}
    for where, names in (
        ("test", set(test) - allowed),
        *((side, set(test[side]) - {*known, "guidance"}) for side in SIDES),
    ):
        if names:
            raise ValueError(f"{where}: {sorted(names)[0]!r} is no field here; use {', '.join(sorted(known))}")


def load(test: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer and further models of a test."""
    model, tokenizer = textguide.load(
        test.get("model", bundled.NAME), device="cpu", dtype=test.get("dtype", "bfloat16")
    )
    return model, tokenizer, load_further(model, models_of(test), device="cpu", dtype=model.dtype)


def models_of(test: Mapping[str, Any]) -> dict[str, str]:
    """The further models of a test and of both its sides, by name."""
    return {
        name: path for part in (test, *(test[side] for side in SIDES)) for name, path in part.get("models", {}).items()
    }


def resumed(work: Work, parts: Sequence[Any], do: Callable[[str, Any, int], Sequence[float]]) -> dict[str, list[float]]:
    """``do(side, part, number)`` for both sides and all parts, numbers an item, each part kept when it is done."""
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    with work.journal() as journal:
        for number, part in enumerate(parts):
            for side in SIDES:
                key = f"{number}/{side}"
                if key not in journal:
                    journal.append(key, [float(value) for value in do(side, part, number)])
                found[side] += journal.done[key]
    return found


def split_up(items: Sequence[Any], size: int) -> list[list[Any]]:
    """The items in parts of ``size``."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def rows_of(guidance: Guidance | None) -> int:
    """Rows that are read for one that is written: the branches and the model itself."""
    if guidance is None:
        return 1
    parts = split(guidance)
    branches = len(parts.branching.branches) if parts.branching is not None else 0
    return (1 + branches) * parts.particles
