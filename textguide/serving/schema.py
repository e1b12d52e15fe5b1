"""Fields of requests: their types and bounds, declared once for the checks of a server and for the inputs of a page."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..support.checks import is_number, is_whole_number
from .errors import RefusedError
from .limits import Limits

SEED_LIMIT = 2**63 - 1
"""The largest seed that a generator of torch accepts."""
_SAFE = 2**53
"""Whole numbers beyond this are not exact in JavaScript."""


@dataclass(frozen=True)
class RequestField:
    """One field of a request.

    Args:
        kinds: types of its values: ``int``, ``float`` (which includes whole numbers), ``str``, ``bool`` and ``dict``.
        least: the smallest number that is allowed; None: no limit.
        most: the largest one, as a number or as the name of a field of :class:`Limits`; None: no limit.
        times: what ``most`` is multiplied by.
        label: what the playground writes below the input of this field; None: the playground has no input for it.
        aliases: further names of the field.
    """

    kinds: tuple[type, ...]
    least: float | None = None
    most: float | str | None = None
    times: int = 1
    label: str | None = None
    aliases: tuple[str, ...] = ()

    def largest(self, limits: Limits) -> float | None:
        """The largest number that is allowed; None: no limit."""
        if self.most is None:
            return None
        bound = getattr(limits, self.most) if isinstance(self.most, str) else self.most
        return float(bound * self.times) if isinstance(bound, float) else bound * self.times

    def check(self, name: str, value: Any, limits: Limits) -> Any:
        """``value``, if the field may have it.

        Raises:
            RefusedError: it has another type, or is outside the bounds.
        """
        if not any(_has_kind(value, kind) for kind in self.kinds):
            raise RefusedError(f"{name}={brief(value)} must be {self._wanted()}")
        if not is_number(value):
            return value
        most = self.largest(limits)
        too_small = self.least is not None and not value >= self.least  # NaN is smaller than everything here
        too_large = most is not None and not value <= most
        if too_small or too_large:
            if most is None:
                raise RefusedError(f"{name}={value} must be {self.least:g} or more")
            raise RefusedError(f"{name}={value} must lie between {self.least} and {most} on this server")
        return value

    def describe(self, name: str, limits: Limits) -> dict[str, Any]:
        """The field as JSON, for an input of a page: its name, label, bounds and step."""
        bounds = {"minimum": self.least, "maximum": self.largest(limits)}
        shown = {side: bound if bound is None or abs(bound) < _SAFE else None for side, bound in bounds.items()}
        return {"name": name, "label": self.label or "", **shown, "step": 1 if int in self.kinds else "any"}

    def _wanted(self) -> str:
        words = [word for kind in self.kinds for word in _WORDS[kind]]
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


_WORDS: dict[type, tuple[str, ...]] = {
    int: ("a whole number",),
    float: ("a number",),
    str: ("a text",),
    bool: ("true", "false"),
    dict: ("an object",),
}


def _has_kind(value: Any, kind: type) -> bool:
    if kind is int:
        return is_whole_number(value)
    if kind is float:
        return is_number(value)
    return isinstance(value, kind)


def read_fields(values: Any, schema: Mapping[str, RequestField], limits: Limits, name: str) -> dict[str, Any]:
    """The fields of the JSON object ``values`` that are not null, checked; aliases are replaced by the field's name.

    Args:
        name: of the object, for messages.

    Raises:
        RefusedError: it is not an object, or one of its fields is unknown, has another type, is outside its bounds, or
            has two values under two of its names.
    """
    if not isinstance(values, Mapping):
        raise RefusedError(f"{name}={brief(values)} must be an object")
    names = field_names(schema)
    refuse_unknown(values, names)
    found: dict[str, Any] = {}
    for key, value in values.items():
        if value is None:
            continue
        field = names[key]
        if found.get(field, value) != value:
            raise RefusedError(f"{key}={brief(value)} is another name of {field}={found[field]!r}; give one of them")
        found[field] = schema[field].check(key, value, limits)
    return found


def field_names(schema: Mapping[str, RequestField]) -> dict[str, str]:
    """The fields by all their names."""
    names = {name: name for name in schema}
    for name, field in schema.items():
        names |= dict.fromkeys(field.aliases, name)
    return names


def describe_fields(schema: Mapping[str, RequestField], limits: Limits) -> list[dict[str, Any]]:
    """The fields that the playground has inputs for, as JSON."""
    return [field.describe(name, limits) for name, field in schema.items() if field.label is not None]


def refuse_unknown(values: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse fields that are not in ``known``.

    Raises:
        RefusedError: there is one; the message names it.
    """
    for name in values:
        if name not in known:
            raise RefusedError(f"{brief(name)} means nothing here; known are {', '.join(known)}")


def brief(value: Any) -> str:
    """``repr(value)``, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
