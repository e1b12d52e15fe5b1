"""Guidance as text: ``cfg:scale=1.5,schedule=linear``, JSON, or the name of a JSON file; `` + `` combines several."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from . import plugins
from .base import Guidance
from .composed import Composed, together
from .formula import Formula


def as_guidance(value: Any) -> Guidance | None:
    """Convert the value of an argument ``guidance=`` to one object.

    Args:
        value: a guidance; text for :func:`parse`, or ``"plain"``; a dictionary from :meth:`Guidance.to_dict`; a list
            of these, which act together; None for plain decoding.

    Raises:
        ValueError: a part of it is not a guidance, or parts cannot be combined.
    """
    if isinstance(value, (list, tuple)):
        parts = []
        for one in value:
            part = as_guidance(one)
            if part is None:
                raise ValueError(f"guidance={value!r}: {one!r} is plain decoding, which has no effect; leave it out")
            parts.append(part)
        return together(parts)
    if isinstance(value, str):
        return None if value.strip().lower() in ("none", "plain") else parse(value)
    if isinstance(value, Mapping):
        return Guidance.from_dict(dict(value))
    if value is None or isinstance(value, Guidance):
        return value
    raise ValueError(f"guidance={value!r} is not a guidance; pass an object such as textguide.CFG(scale=1.5), or text")


def parse(text: str, imports: bool = False) -> Guidance:
    """Create the guidance that ``text`` describes.

    Args:
        text: ``NAME``, ``NAME:FIELD=VALUE,FIELD=VALUE``, a JSON object from :meth:`Guidance.to_json`, or the name
            of a file with such an object. Several with `` + `` between them act together. Everything after
            ``formula:`` is a formula.
        imports: ``NAME`` (and ``method`` in JSON) may be ``python:MODULE:CLASS``, which imports the module. Only
            for text from the person who runs the program, not for requests.

    Raises:
        ValueError: the name or a field is unknown (the message suggests similar ones), or a value is invalid.
    """
    text = text.strip()
    if text.startswith("formula:") and not text.startswith("formula:expression="):
        return Formula.of(text.removeprefix("formula:"))
    if " + " in text and not text.startswith("{"):
        joined = together([parse(part, imports) for part in text.split(" + ")])
        assert joined is not None
        return joined
    if text.startswith("{"):
        return _from_json(text, text, imports)
    if text.endswith(".json"):
        try:
            return _from_json(Path(text).read_text(encoding="utf-8"), text, imports)
        except OSError as error:
            raise ValueError(f"guidance file {text} cannot be read ({error.strerror}); check the path") from error
    if text.startswith(plugins.PREFIX):
        return _imported(text, imports)
    name, _, rest = text.partition(":")
    method = Guidance.registry.get(name)
    if method is None:
        raise ValueError(unknown(name))
    return _with_fields(method, rest, text)


def _imported(text: str, imports: bool) -> Guidance:
    """The guidance of ``python:MODULE:NAME``, with or without fields."""
    if not imports:
        raise ValueError(
            f"guidance {text!r} names a class in a module, which only the command line imports; import it and pass an "
            f"object, or name its module in {plugins.VARIABLE}"
        )
    module, _, rest = text.removeprefix(plugins.PREFIX).partition(":")
    attribute, _, rest = rest.partition(":")
    value = plugins.named(f"{module}:{attribute}")
    if not isinstance(value, Guidance):
        return _with_fields(value, rest, text)
    if rest:
        raise ValueError(f"guidance {text!r} is a guidance, whose fields are set; leave {rest!r} out")
    return value


def _with_fields(method: type[Guidance], rest: str, text: str) -> Guidance:
    """``method`` with the fields in ``rest``; ``text`` is the whole text, for error messages."""
    name = method.name
    known = [field.name for field in fields(method)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        key = key.strip()
        if key not in known:
            raise ValueError(f"guidance {text!r}: {key!r} is not a field of {name}; {_nearest(key, known)}")
        if not equals:
            raise ValueError(f"guidance {text!r}: write {key}=VALUE")
        values[key] = _value(value.strip())
    missing = method.missing_fields(values)
    if missing:
        example = ",".join(f"{field}=VALUE" for field in missing)
        raise ValueError(f"guidance {text!r} needs {' and '.join(missing)}; write {name}:{example}")
    return method(**values)


def unknown(name: str) -> str:
    """The error message for a name that is not the name of a method."""
    return f"guidance {name!r} is unknown; {_nearest(name, Guidance.registry)}"


def label(guidance: Guidance | None) -> str:
    """A short name for tables and plots: the method with the fields that differ from their defaults."""
    if guidance is None:
        return "plain"
    if isinstance(guidance, Composed):
        return " + ".join(label(part) for part in guidance.parts)
    parts: list[str] = []
    for field in fields(guidance):  # type: ignore[arg-type]
        value = getattr(guidance, field.name)
        if field.name == "scale":
            parts.insert(0, f"{value:g}")
        elif value != field.default:
            parts.append(f"{field.name}={_short(value)}")
    return " ".join([guidance.name, *parts])


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(getattr(value, "name", value))
    return text if len(text) <= 24 else text[:23] + "…"


def _from_json(text: str, source: str, imports: bool) -> Guidance:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"guidance {source!r} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"guidance {source!r} must be a JSON object with a method and its fields")
    return Guidance.from_dict(plugins.registered(values) if imports else values)


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else f"use one of {', '.join(sorted(known))}"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"None": None, "True": True, "False": False}.get(text, text)
