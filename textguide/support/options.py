"""Command-line options that are made from the fields of a dataclass, so that a setting is described once.

A field becomes an option if its metadata comes from :func:`option`::

    @dataclass(frozen=True)
    class Settings:
        limit: int | None = field(default=None, metadata=option("items per task [all]"))
        system_instruction: str | None = field(default=None, metadata=option("system prompt", flag="--system"))

    add_options(parser, Settings)
    settings = from_arguments(Settings, parser.parse_args())
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
_KEY = "option"


@dataclasses.dataclass(frozen=True)
class _Option:
    """What a field's metadata holds; the fields are the arguments of :func:`option`."""

    help: str
    flag: str | None
    choices: Sequence[str] | None
    metavar: str | None
    parse: Callable[[str, str], Any] | None

    def flag_of(self, name: str) -> str:
        return self.flag or "--" + name.replace("_", "-")


def option(
    help: str,
    *,
    flag: str | None = None,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    parse: Callable[[str, str], Any] | None = None,
) -> Mapping[str, Any]:
    """Metadata that turns a dataclass field into a command-line option.

    Args:
        help: the help text. The field's default is added in brackets, unless the text ends with brackets or the default
            is None, False or empty.
        flag: the option's name; None: the field's name with dashes.
        choices: the values that are allowed; None: any.
        metavar: placeholder of the value in the help; None: argparse's own.
        parse: converts the text of the option, which it receives with the flag, for messages. None: the field's type
            decides. Such a function raises ValueError.
    """
    return {_KEY: _Option(help, flag, choices, metavar, parse)}


def add_options(group: Any, settings: type, names: Collection[str] | None = None) -> None:
    """Add an option for each field of a dataclass whose metadata comes from :func:`option`.

    Fields of type bool become switches (with ``--no-…`` if they are True or None by default), tuples and lists may be
    repeated, and other types, or the type besides None, convert the text.

    Args:
        group: a parser, or a group of one.
        settings: the dataclass.
        names: fields to add; None: all of them. The fields that are left out may come from another dataclass with the
            same fields in the same parser.
    """
    hints = typing.get_type_hints(settings)
    for field, described in _options(settings):
        if names is None or field.name in names:
            flag = described.flag_of(field.name)
            group.add_argument(flag, dest=field.name, **_keywords(field, described, hints[field.name]))


def from_arguments(settings: type[T], arguments: argparse.Namespace, **values: Any) -> T:
    """The dataclass that the parsed arguments describe.

    Args:
        settings: the dataclass.
        arguments: what the parser returned.
        **values: fields that are no options, or are set by the command.

    Raises:
        ValueError: a value is not allowed; the message names the option instead of the field.
    """
    flags: dict[str, str] = {}
    found: dict[str, Any] = {}
    for field, described in _options(settings):
        if not hasattr(arguments, field.name):
            continue
        value = getattr(arguments, field.name)
        flags[field.name] = described.flag_of(field.name)
        if described.parse is not None and isinstance(value, str):
            value = described.parse(value, flags[field.name])
        found[field.name] = tuple(value) if isinstance(value, list) else value
    try:
        return settings(**found | values)
    except ValueError as error:
        name, equals, rest = str(error).partition("=")
        if not equals or name not in flags:
            raise
        raise ValueError(f"{flags[name]}={rest}") from None


def named_values(text: str, flag: str) -> dict[str, Any]:
    """``NAME=VALUE,NAME=VALUE``: values are JSON, or else text; True and False are accepted as Python spells them.

    Args:
        text: the text of the option.
        flag: the option, for the message.

    Raises:
        ValueError: a part has no equals sign.
    """
    values: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{flag} {text}: write NAME=VALUE, separated by commas")
        try:
            values[name.strip()] = json.loads(value)
        except ValueError:
            values[name.strip()] = {"True": True, "False": False}.get(value, value)
    return values


def _options(settings: type) -> list[tuple[dataclasses.Field[Any], _Option]]:
    return [(field, field.metadata[_KEY]) for field in dataclasses.fields(settings) if _KEY in field.metadata]


def _keywords(field: dataclasses.Field[Any], described: _Option, hint: Any) -> dict[str, Any]:
    """Arguments of ``add_argument`` for a field of type ``hint``."""
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    required = default is dataclasses.MISSING
    kind = _without_none(hint)
    keywords: dict[str, Any] = {"help": _help(described.help, default)}
    if kind is bool:
        keywords["action"] = "store_true" if default is False else argparse.BooleanOptionalAction
        keywords["default"] = default
        return keywords
    if required:
        keywords["required"] = True
    if described.metavar is not None:
        keywords["metavar"] = described.metavar
    if described.choices is not None:
        keywords["choices"] = tuple(described.choices)
    if typing.get_origin(kind) in (tuple, list):
        values: Any = () if required or default is None else default
        return {**keywords, "action": "append", "default": list(values)}
    if described.parse is None and kind is not str:
        keywords["type"] = kind
    return {**keywords, "default": default}


def _help(text: str, default: Any) -> str:
    """``text`` with the default in brackets, if there is one to show and ``text`` does not end with brackets."""
    if default in (dataclasses.MISSING, None, False, "", (), []) or text.endswith("]"):
        return text
    return f"{text} [%(default)s]"


def _without_none(hint: Any) -> Any:
    """``X`` for ``X | None``, and the type itself otherwise."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else str
