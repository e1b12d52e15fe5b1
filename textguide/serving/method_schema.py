"""The registered methods as forms of a page: every field with its kind, default, range, choices and documentation."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, Field, fields, replace
from functools import lru_cache
from typing import Any

from ..guidance import Guidance, catalogue, split
from ..guidance.places import PLACES
from ..guidance.prompts import to_json
from ..guidance.schedules import SCHEDULES
from ..support.checks import is_number

COMMON = (
    "schedule",
    "renormalize",
    "min_scale",
    "max_scale",
    "start",
    "stop",
    "entropy_threshold",
    "every",
    "include_prompt",
    "resampling",
    "ess_threshold",
)
"""Fields that many methods share and that few visitors change."""
HIDDEN = ("critic", "skip_threshold")
"""Fields whose values are not JSON, and deprecated ones."""
TEXT_FIELDS = ("negative_prompt", "negative_system", "context", "prompt", "instruction", "expression")
"""Fields of any type that are mostly given as text."""
_LOADS = re.compile(r"\b(folder|file|path)s?\b|python:", re.IGNORECASE)
"""Words in the documentation of fields that may name something on the server's machine."""
_FAR = 1_000_000
"""A field that accepts this number has no bound."""


@lru_cache(maxsize=1)
def method_forms() -> tuple[dict[str, Any], ...]:
    """All methods as JSON: their entry in the catalogue, ``summary``, ``fields``, ``places`` and an ``example``."""
    return tuple(_form(method["name"]) for method in catalogue.methods())


@lru_cache(maxsize=1)
def loading_fields() -> frozenset[tuple[str, str]]:
    """Pairs of a method and one of its fields that may name a file, a folder or code."""
    return frozenset(
        (form["name"], field["name"]) for form in method_forms() for field in form["fields"] if field["loads"]
    )


def _form(name: str) -> dict[str, Any]:
    method = Guidance.registry[name]
    document = inspect.getdoc(method) or ""
    whole = catalogue.example(method)
    example = next((part for part in whole.parts if isinstance(part, method)), None) or method()
    documented = _documented_fields(method)
    shown = [field for field in fields(method) if field.name not in HIDDEN]  # type: ignore[arg-type]
    return {
        "name": name,
        "class": method.__name__,
        **{key: value for key, value in vars(method.about).items() if key != "example"},
        "passes": method.about.passes.replace("`", ""),
        "summary": _plain(document.split("\n\n")[0]),
        "example": to_json(example.to_dict()),
        "fields": [_field(field, example, documented.get(field.name, "")) for field in shown],
        "places": {place.name: place.reason(whole) or True for place in PLACES},
        "kind": "constraint" if split(example).sampling is not None else "branches",
    }


def _documented_fields(method: type[Guidance]) -> dict[str, str]:
    """The documentation of each field; a method's own docstring takes precedence over those of its base classes."""
    documented: dict[str, str] = {}
    for ancestor in reversed(method.__mro__):
        if issubclass(ancestor, Guidance):
            documented |= documented_arguments(inspect.cleandoc(ancestor.__doc__ or ""))
    return documented


def _field(field: Field[Any], example: Guidance, text: str) -> dict[str, Any]:
    annotation = str(field.type)
    kind = next((one for one in ("bool", "int", "float", "str") if re.match(rf"{one}\b", annotation)), "any")
    if field.name in TEXT_FIELDS:
        kind = "text"
    values: dict[str, Any] = {
        "name": field.name,
        "kind": kind,
        "optional": "None" in annotation or field.name in TEXT_FIELDS,
        "required": field.default is MISSING and field.default_factory is MISSING,
        "default": None if field.default is MISSING else to_json(field.default),
        "help": _plain(text),
        "common": field.name in COMMON,
        "loads": bool(_LOADS.search(text)),
    }
    if kind in ("int", "float"):
        values |= _range(field.name, kind, example)
    if field.name == "schedule":
        values["suggestions"] = list(SCHEDULES)
    elif kind == "str":
        values["choices"] = _choices(field.name, example, text)
    return values


def _range(name: str, kind: str, example: Guidance) -> dict[str, Any]:
    """The smallest and the largest number that the method accepts, found by trying; None if there is no bound.

    A method states its bounds in code only, so its own check is asked instead of keeping a second list here.
    """
    start = getattr(example, name)
    if not is_number(start) or not _accepts(example, name, start):
        start = next((value for value in (1, 0.5, 2) if _accepts(example, name, value)), None)
    if start is None:
        return {"minimum": None, "maximum": None}
    return {"minimum": _bound(name, kind, example, start, -_FAR), "maximum": _bound(name, kind, example, start, _FAR)}


def _bound(name: str, kind: str, example: Guidance, accepted: float, far: float) -> float | None:
    """The last number between ``accepted`` and ``far`` that the method accepts, to a thousandth, by bisection; None if
    it accepts ``far``."""
    if _accepts(example, name, far if kind == "float" else int(far)):
        return None
    refused = far
    step = 1 if kind == "int" else 1e-4
    while abs(refused - accepted) > step:
        middle = (accepted + refused) / 2 if kind == "float" else (int(accepted) + int(refused)) // 2
        if middle == accepted:  # below 0, // rounds away from 0, so that the middle may not move
            break
        if _accepts(example, name, middle):
            accepted = middle
        else:
            refused = middle
    return int(accepted) if kind == "int" else round(accepted, 3)


def _choices(name: str, example: Guidance, text: str) -> list[str] | None:
    """The quoted words of the documentation that the method accepts; None if it accepts any text."""
    if _accepts(example, name, "no such choice"):
        return None
    quoted = [one.strip("\"'") for one in re.findall(r"``([^`]+)``", text)]
    choices = [one for one in dict.fromkeys(quoted) if _accepts(example, name, one)]
    return choices or None


def _accepts(example: Guidance, name: str, value: Any) -> bool:
    try:
        replace(example, **{name: value})  # type: ignore[type-var]
    except (ValueError, TypeError):
        return False
    return True


def documented_arguments(document: str) -> dict[str, str]:
    """The part ``Args:`` of a docstring, by argument."""
    arguments: dict[str, str] = {}
    inside = False
    names: list[str] = []
    for line in document.split("\n"):
        if line.startswith("Args:"):
            inside = True
        elif inside and line and not line.startswith(" "):
            break
        elif inside:
            started = re.match(r" {4}(\w+(?:, \w+)*): ?(.*)", line)
            if started:
                names = started[1].split(", ")
                arguments |= dict.fromkeys(names, started[2].strip())
            else:
                arguments |= {name: f"{arguments[name]} {line.strip()}".strip() for name in names}
    return arguments


def _plain(text: str) -> str:
    """A docstring's text without its markup."""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda m: m[1].rsplit(".", 1)[-1], text)
    return " ".join(text.replace("``", "").split())
