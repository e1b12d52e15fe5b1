"""The registered methods as a table: for the command line, the documentation and the tests."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from .base import Guidance


def methods() -> list[dict[str, Any]]:
    """What is registered, by name: ``name``, ``class``, the fields of :class:`About`, and the fields with defaults.

    A method's class without an ``about`` (such as a sum of others) is left out.
    """
    found = []
    for name, method in sorted(Guidance.registry.items()):
        about = getattr(method, "about", None)
        if about is not None:
            defaults = {field.name: _default(field) for field in fields(method)}  # type: ignore[arg-type]
            found.append({"name": name, "class": method.__name__, **vars(about), "fields": defaults})
    return found


def markdown() -> str:
    """The table of the documentation, each name a link to its page."""
    lines = [
        "| name | paper | rule | beside the conditional pass | neutral at | worth a try for |",
        "|---|---|---|---|---|---|",
    ]
    for method in methods():
        name = f"[`{method['name']}`](methods/{method['name']}.md) — `{method['class']}`"
        if method["experimental"]:
            name += " *(experimental)*"
        paper = f"[{method['paper']}](https://arxiv.org/abs/{method['paper']})"
        rule = method["rule"].replace("|", "\\|")
        lines.append(f"| {name} | {paper} | {rule} | {method['passes']} | {method['neutral']} | {method['helps']} |")
    return "\n".join(lines) + "\n"


def _default(field: Any) -> Any:
    return None if field.default is MISSING else field.default
