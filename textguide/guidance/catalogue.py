"""The registered methods as a table: for the command line, the documentation and the tests."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from dataclasses import MISSING, fields
from typing import Any

from .base import AS_IN_PAPER, Guidance
from .places import PLACES
from .spec import as_guidance


def methods() -> list[dict[str, Any]]:
    """The registered methods by name: ``name``, ``class``, the fields of :class:`About`, and ``fields`` with defaults.

    Classes without an ``about`` (such as :class:`Composed`) are left out.
    """
    rows = []
    for name, method in sorted(Guidance.registry.items()):
        about = getattr(method, "about", None)
        if about is not None:
            defaults = {field.name: _default(field) for field in fields(method)}  # type: ignore[arg-type]
            rows.append({"name": name, "class": method.__name__, **vars(about), "fields": defaults})
    return rows


def described_fields(method: type[Guidance]) -> list[dict[str, Any]]:
    """Every field of a method, including inherited ones.

    Returns:
        Dictionaries with ``name``, ``default``, ``required``, ``text`` (the description in the docstring of the class
        that documents the field; empty if none does) and ``of``, the name of that class.
    """
    texts: dict[str, tuple[str, str]] = {}
    for cls in reversed(method.__mro__):
        for name, text in _arguments(cls.__dict__.get("__doc__") or "").items():
            texts[name] = (text, cls.__name__)
    rows = []
    for field in fields(method):  # type: ignore[arg-type]
        text, of = texts.get(field.name, ("", method.__name__))
        required = field.default is MISSING and field.default_factory is MISSING
        default = field.default_factory() if field.default_factory is not MISSING else _default(field)
        rows.append({"name": field.name, "default": default, "required": required, "text": text, "of": of})
    return rows


def _arguments(document: str) -> dict[str, str]:
    """The descriptions in the section ``Args:`` of a docstring, by name."""
    _, heading, rest = inspect.cleandoc(document).partition("Args:\n")
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in rest.splitlines() if heading else []:
        if line.strip() and not line.startswith("    "):
            break
        head = re.match(r" {4}([\w, ]+): (.*)", line)
        if head is not None:
            names = [name.strip() for name in head[1].split(",")]
            texts |= dict.fromkeys(names, head[2])
        elif line.strip():
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return texts


def markdown() -> str:
    """The table of methods in the documentation. Each name links to the method's page."""
    lines = [
        "| name, class, paper | rule | mechanism | extra cost | use it for |",
        "|---|---|---|---|---|",
    ]
    for method in methods():
        name = f"[`{method['name']}`](methods/{method['name']}.md) `{method['class']}`"
        if method["experimental"]:
            name += " *(experimental)*"
        if method["paper"]:
            name += f" [{method['paper']}](https://arxiv.org/abs/{method['paper']})"
        rule = method["rule"].replace("|", "\\|")
        mechanism = method["mechanism"] if method["paper"] else "–"
        lines.append(f"| {name} | {rule} | {mechanism} | {method['passes']} | {method['helps']} |")
    return "\n".join(lines) + "\n"


def other_mechanisms(names: Collection[str]) -> dict[str, str]:
    """What the methods among ``names`` do differently from their papers, by name; only those that do."""
    return {
        method["name"]: method["mechanism"]
        for method in methods()
        if method["name"] in names and method["mechanism"] != AS_IN_PAPER
    }


def example(method: type[Guidance]) -> Guidance:
    """A typical setting of a method."""
    text = method.about.example
    guidance = method() if text is None else as_guidance(text)
    assert guidance is not None
    return guidance


def matrix() -> list[dict[str, Any]]:
    """Methods × places: ``method`` (its name) and ``cells``, per place True or the reason why it cannot run there."""
    return [
        {
            "method": name,
            "cells": {place.name: place.reason(example(Guidance.registry[name])) or True for place in PLACES},
        }
        for name in (method["name"] for method in methods())
    ]


def numbered_reasons(rows: list[dict[str, Any]]) -> dict[str, int]:
    """The distinct reasons of empty cells, with their numbers in the table."""
    reasons = dict.fromkeys(cell for row in rows for cell in row["cells"].values() if cell is not True)
    return {reason: number for number, reason in enumerate(reasons, start=1)}


def matrix_markdown() -> str:
    """The matrix as a table, with the reasons below it."""
    rows = matrix()
    numbers = numbered_reasons(rows)
    lines = ["| method | " + " | ".join(f"`{place.name}`" for place in PLACES) + " |", "|---|" + ":-:|" * len(PLACES)]
    for row in rows:
        shown = ["✓" if cell is True else str(numbers[cell]) for cell in row["cells"].values()]
        lines.append(f"| `{row['method']}` | " + " | ".join(shown) + " |")
    lines += ["", *(f"{number}. {reason}" for reason, number in numbers.items())]
    return "\n".join(lines) + "\n"


def _default(field: Any) -> Any:
    return None if field.default is MISSING else field.default
