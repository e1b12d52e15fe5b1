"""Constraints from Python values: types, lists of texts, compiled patterns."""

from __future__ import annotations

import enum
import importlib
import re
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from .base import Constraint
from .json_schema import JSONSchema
from .patterns import Regex

_FLAGS = (("IGNORECASE", "i"), ("MULTILINE", "m"), ("DOTALL", "s"), ("VERBOSE", "x"), ("ASCII", "a"))
"""Flags of compiled patterns by their names, and their letters inside a pattern."""


def from_python(value: Any, engine: str | None = None) -> Constraint | None:
    """The constraint that a Python value describes.

    Args:
        value: a type that pydantic can describe (a pydantic model, a dataclass, a TypedDict, ``list[Model]``,
            ``Annotated[…]``), which means its JSON documents; an Enum or a ``Literal`` whose values are texts, or
            a list of texts, which mean these texts without quotation marks; or a compiled pattern of ``re`` or
            ``regex``.
        engine: for patterns and schemas; None: their own default.

    Returns:
        None if it is none of these.

    Raises:
        ValueError: it is one of these, but cannot be used.
    """
    options: dict[str, Any] = {} if engine is None else {"engine": engine}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return _choice(value, options)
    if _is_pattern(value):
        return Regex(_with_flags(value), **options)
    texts = _texts_of_type(value)
    if texts is not None:
        return Regex(_alternatives(texts), **options)
    return JSONSchema(value, **options) if is_type(value) else None


def is_type(value: Any) -> bool:
    """Whether ``value`` is a type, such as a class or ``list[int]``."""
    return isinstance(value, type) or get_origin(value) is not None or type(value).__name__ == "TypeAliasType"


def _choice(texts: Sequence[Any], options: dict[str, Any]) -> Constraint:
    """One of some texts."""
    if not texts:
        raise ValueError(f"constraint={texts!r} is empty; list at least one text")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(
                f"constraint={texts!r} contains {text!r}; a list contains the texts that are allowed. Write AnyOf for "
                "one of several constraints"
            )
    return Regex(_alternatives(texts), **options)


def _alternatives(texts: Sequence[str]) -> str:
    """A pattern for some texts."""
    return "|".join(re.escape(text) for text in dict.fromkeys(texts))


def _texts_of_type(value: Any) -> list[str] | None:
    """The texts that an Enum or a ``Literal`` lists; None for other values."""
    if get_origin(value) is Literal:
        values = list(get_args(value))
    elif isinstance(value, type) and issubclass(value, enum.Enum):
        values = [member.value for member in value]
    else:
        return None
    texts = [one.value if isinstance(one, enum.Enum) else one for one in values]
    return texts if texts and all(isinstance(text, str) for text in texts) else None


def _is_pattern(value: Any) -> bool:
    return isinstance(value, re.Pattern) or (type(value).__name__ == "Pattern" and hasattr(value, "fullmatch"))


def _with_flags(compiled: Any) -> str:
    """The pattern of a compiled pattern, with its flags inside."""
    pattern = compiled.pattern
    if not isinstance(pattern, str):
        raise ValueError(f"constraint={compiled!r} is a pattern for bytes; compile one for texts")
    module = importlib.import_module("re" if isinstance(compiled, re.Pattern) else "regex")
    letters = "".join(letter for name, letter in _FLAGS if compiled.flags & getattr(module, name))
    return f"(?{letters}){pattern}" if letters else pattern
