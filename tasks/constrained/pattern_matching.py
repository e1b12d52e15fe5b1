"""A text that matches a regular expression: the pattern-matching task of Lipkin et al. (arXiv 2504.05410)."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

from textguide.constraints import Constraint, Regex

from ..loaders import local_file
from .base import ConstrainedTask, Item, conversation

FILE = "awrs/patterns.csv"
INSTRUCTION = "Write one text that matches the regular expression as a whole. Give the text and nothing else."
EXAMPLES = (
    (r"^[A-Z]{2}-\d{4}$", "QX-3071"),
    (r"(red|green|blue)( (light|dark))?", "green dark"),
    (r"^\d{1,3}(\.\d{1,3}){3}$", "10.4.22.7"),
    (r"[aeiou]+[^aeiou\s]{3}", "oundr"),
)
SECONDS = 0.5
"""Longest that the judge, which backtracks, may think about one text."""


class PatternMatching(ConstrainedTask):
    """Patterns of ``awrs/patterns.csv``.

    Args:
        data: as for every task.
        every: take the patterns with backreferences, recursion and the like too, whose constraint has no mask.
    """

    name = "patterns"
    measures = ("valid",)
    max_new_tokens = 48

    def __init__(self, data: str | os.PathLike[str] | None = None, every: bool = False) -> None:
        super().__init__(data)
        self.every = every

    def items(self) -> Sequence[Item]:
        with local_file(FILE, self.data).open(encoding="utf-8", newline="") as stream:
            patterns = [row["regex"] for row in csv.DictReader(stream)]
        return [
            Item(f"{number:03d}", conversation(INSTRUCTION, EXAMPLES, pattern), pattern)
            for number, pattern in enumerate(patterns)
            if (judged(pattern) if self.every else regular(pattern) is not None)
        ]

    def constraint(self, item: Item) -> Constraint:
        return Regex(item.answer)

    def check(self, item: Item, text: str) -> dict[str, float]:
        return {"valid": float(matches(item.answer, text))}


@cache
def regular(pattern: str) -> Regex | None:
    """The pattern for the linear engine; None where it cannot be used, or nothing matches it."""
    try:
        constraint = Regex(pattern, engine="llguidance")
    except ValueError:
        return None
    return constraint if judged(pattern) and satisfiable(constraint) else None


def satisfiable(constraint: Regex) -> bool:
    """Whether any text matches."""
    from textguide.constraints import UnsatisfiableError, Vocabulary

    bytes_alone = Vocabulary((b"", *(bytes([byte]) for byte in range(256))), frozenset([0]))
    try:
        constraint.start(bytes_alone)
    except UnsatisfiableError:
        return False
    return True


def judged(pattern: str) -> bool:
    """Whether the judge takes the pattern."""
    try:
        compile_pattern(pattern)
    except ValueError:
        return False
    return True


@cache
def compile_pattern(pattern: str) -> Any:
    """The pattern in the ``regex`` package: the judge.

    Raises:
        ValueError: it takes this pattern for an error.
    """
    import regex

    # Sets with operators are its second version's.
    version = regex.V1 if regex.search(r"&&|--(?:\[|\\[dDpPsSwW])|~~", pattern) else regex.V0
    try:
        return regex.compile(pattern, version)
    except regex.error as error:
        raise ValueError(f"pattern={pattern!r} is no pattern of the judge: {error}") from error


def matches(pattern: str, text: str) -> bool:
    """Whether the judge finds that ``text`` matches as a whole."""
    try:
        return compile_pattern(pattern).fullmatch(text, timeout=SECONDS) is not None
    except TimeoutError:
        return False
