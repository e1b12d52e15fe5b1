"""The registered methods as forms: every field with its kind, default, range, choices and what its docstring says."""

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

COMMON = ("schedule", "renormalize", "min_scale", "max_scale", "start", "stop", "entropy_threshold",
          "every", "include_prompt", "resampling", "ess_threshold")  # fmt: skip
"""Fields that many methods share and few visitors change."""
HIDDEN = ("critic", "skip_threshold")
"""Fields whose values are not JSON, and deprecated ones."""
TEXTS = ("negative_prompt", "negative_system", "context", "prompt", "instruction", "expression")
"""Fields of any type that are mostly given as text."""
_LOADS = re.compile(r"\b(folder|file|path)s?\b|python:", re.IGNORECASE)
"""What a docstring says of fields that may name something of the machine."""
_FAR = 1_000_000
"""Where the search for a bound ends: there is none."""


@lru_cache(maxsize=1)
def forms() -> tuple[dict[str, Any], ...]:
    """All methods: what the tables say of them, ``summary``, ``fields``, ``places`` and an ``example`` as JSON."""
    return tuple(_form(method["name"]) for method in catalogue.methods())


@lru_cache(maxsize=1)
def loading() -> frozenset[tuple[str, str]]:
    """Methods with those of their fields that may name something of the machine: files, folders, code."""
    return frozenset((form["name"], field["name"]) for form in forms() for field in form["fields"] if field["loads"])


def _form(name: str) -> dict[str, Any]:
    method = Guidance.registry[name]
    document = inspect.getdoc(method) or ""
    whole = catalogue.example(method)
    example = next((part for part in whole.parts if isinstance(part, method)), None) or method()
    texts: dict[str, str] = {}
    for ancestor in reversed(method.__mro__):  # what a method says of a field counts before what it inherits
        if issubclass(ancestor, Guidance):
            texts |= arguments_of(inspect.cleandoc(ancestor.__doc__ or ""))
    given = [field for field in fields(method) if field.name not in HIDDEN]  # type: ignore[arg-type]
    return {
        "name": name,
        "class": method.__name__,
        **{key: value for key, value in vars(method.about).items() if key != "example"},
        "passes": method.about.passes.replace("`", ""),
        "summary": _plain(document.split("\n\n")[0]),
        "example": to_json(example.to_dict()),
        "fields": [_field(field, example, texts.get(field.name, "")) for field in given],
        "places": {place.name: place.reason(whole) or True for place in PLACES},
        "kind": "constraint" if split(example).sampling is not None else "branches",
    }


def _field(field: Field[Any], example: Guidance, text: str) -> dict[str, Any]:
    annotation = str(field.type)
    optional = "None" in annotation or field.name in TEXTS
    base = next((kind for kind in ("bool", "int", "float", "str") if re.match(rf"{kind}\b", annotation)), "any")
    if field.name in TEXTS:
        base = "text"
    made: dict[str, Any] = {
        "name": field.name,
        "kind": base,
        "optional": optional,
        "required": field.default is MISSING and field.default_factory is MISSING,
        "default": None if field.default is MISSING else to_json(field.default),
        "help": _plain(text),
        "common": field.name in COMMON,
        "loads": bool(_LOADS.search(text)),
    }
    if base in ("int", "float"):
        made |= _range(field.name, base, example)
    if field.name == "schedule":
        made["suggestions"] = list(SCHEDULES)
    elif base == "str":
        made["choices"] = _choices(field.name, example, text)
    return made


def _range(name: str, kind: str, example: Guidance) -> dict[str, Any]:
    """What the method itself takes: bounds that were found by asking it, None where there are none."""
    start = getattr(example, name)
    if isinstance(start, bool) or not isinstance(start, (int, float)) or not _takes(example, name, start):
        start = next((value for value in (1, 0.5, 2) if _takes(example, name, value)), None)
    if start is None:
        return {"minimum": None, "maximum": None}
    low, high = (_edge(name, kind, example, start, far) for far in (-_FAR, _FAR))
    return {"minimum": low, "maximum": high}


def _edge(name: str, kind: str, example: Guidance, taken: float, far: float) -> float | None:
    """The last value between ``taken`` and ``far`` that the method takes, to a thousandth; None where that is far."""
    if _takes(example, name, far if kind == "float" else int(far)):
        return None
    refused, step = far, 1 if kind == "int" else 1e-4
    while abs(refused - taken) > step:
        middle = (taken + refused) / 2 if kind == "float" else (int(taken) + int(refused)) // 2
        if middle == taken:  # whole numbers below 0 are halved downwards
            break
        taken, refused = (middle, refused) if _takes(example, name, middle) else (taken, middle)
    return int(taken) if kind == "int" else round(taken, 3)


def _choices(name: str, example: Guidance, text: str) -> list[str] | None:
    """Texts that the docstring quotes and the method takes; None where it takes any."""
    if _takes(example, name, "no such choice"):
        return None
    quoted = [one.strip("\"'") for one in re.findall(r"``([^`]+)``", text)]
    found = [one for one in dict.fromkeys(quoted) if _takes(example, name, one)]
    return found or None


def _takes(example: Guidance, name: str, value: Any) -> bool:
    try:
        replace(example, **{name: value})  # type: ignore[type-var]
    except (ValueError, TypeError):
        return False
    return True


def arguments_of(document: str) -> dict[str, str]:
    """The part ``Args:`` of a docstring, by argument."""
    found: dict[str, str] = {}
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
                found |= dict.fromkeys(names, started[2].strip())
            else:
                found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found


def _plain(text: str) -> str:
    """A docstring's text without its markup."""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda m: m[1].rsplit(".", 1)[-1], text)
    return " ".join(text.replace("``", "").split())
