"""Options that repeat the fields of a class or the arguments of a function, which are read from its source.

Most modules import torch, which takes seconds, and a help page must not wait for it. The source has all that an option
needs: the name, the type, the default, and the description in the section ``Args:`` of the docstring.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..support.options import option

ROOT = Path(__file__).parent.parent
_TYPES = {"int": int, "float": float, "bool": bool}
_ARGUMENT = "argument"


@dataclasses.dataclass(frozen=True)
class Argument:
    """A field of a class or an argument of a function; ``text`` is its description."""

    name: str
    kind: Any
    default: Any
    text: str


def settings_of(file: str, owners: str, names: str, **changes: dict[str, Any]) -> type:
    """A dataclass for :func:`textguide.support.options.add_options`, with a field per argument.

    Args:
        file: the source, below the folder of textguide.
        owners: classes or functions in it, separated by spaces, base classes first.
        names: their arguments that become options, separated by spaces. An argument of several owners is that of the
            last one.
        **changes: what differs on the command line, by argument: ``name`` (of the option), ``default``, and arguments
            of :func:`textguide.support.options.option`.
    """
    fields: list[Any] = []
    declared = _arguments(file, owners.split())
    for name in names.split():
        argument = declared[name]
        option_values = {"name": name, "default": argument.default, "help": argument.text, **changes.get(name, {})}
        option_name = option_values.pop("name")
        default = option_values.pop("default")
        metadata = {**option(**option_values), _ARGUMENT: name}
        field = dataclasses.field(default=default, kw_only=True, metadata=metadata)
        fields.append((option_name, argument.kind, field))
    return dataclasses.make_dataclass(owners.split()[-1], fields)


def values_of(settings: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """The parsed options as keyword arguments of the class or function."""
    return {field.metadata[_ARGUMENT]: getattr(arguments, field.name) for field in dataclasses.fields(settings)}


def flags_of(settings: type) -> dict[str, str]:
    """The option of each argument, for :func:`textguide.cli.parser.in_options`."""
    return {field.metadata[_ARGUMENT]: "--" + field.name.replace("_", "-") for field in dataclasses.fields(settings)}


def names_in(file: str, constant: str) -> tuple[str, ...]:
    """The names that a constant of a module lists: the texts of a tuple, or the keys of a dictionary."""
    for node in _parsed(file).body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and target.id == constant:
            items = node.value.keys if isinstance(node.value, ast.Dict) else _elements(node.value)
            return tuple(str(item.value) for item in items if isinstance(item, ast.Constant))
    raise KeyError(constant)


def _elements(value: ast.expr | None) -> list[ast.expr]:
    if not isinstance(value, (ast.Tuple, ast.List)):
        raise TypeError("the constant must be a tuple, a list or a dictionary")
    return value.elts


@lru_cache(maxsize=32)
def _parsed(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def _arguments(file: str, owners: list[str]) -> dict[str, Argument]:
    nodes: dict[str, Any] = {}
    for node in _parsed(file).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            nodes[node.name] = node
    arguments = {}
    for owner in owners:
        texts = _descriptions(ast.get_docstring(nodes[owner]) or "")
        for name, annotation, default in _declared(nodes[owner]):
            arguments[name] = Argument(name, _kind(annotation), default, texts.get(name, ""))
    return arguments


def _declared(node: ast.ClassDef | ast.FunctionDef) -> Iterator[tuple[str, ast.expr, Any]]:
    """Name, annotation and default of the fields of a class, or of the keyword-only arguments of a function."""
    if isinstance(node, ast.ClassDef):
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                yield from _with_default(statement.target.id, statement.annotation, statement.value)
        return
    for argument, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        if argument.annotation is not None:
            yield from _with_default(argument.arg, argument.annotation, value)


def _with_default(name: str, annotation: ast.expr, value: ast.expr | None) -> Iterator[tuple[str, ast.expr, Any]]:
    if isinstance(value, ast.Call):  # field(default=…)
        value = next((keyword.value for keyword in value.keywords if keyword.arg == "default"), None)
    if value is not None:
        try:
            yield name, annotation, ast.literal_eval(value)
        except ValueError:  # computed when the module is imported
            return


def _kind(annotation: ast.expr) -> Any:
    """The type that converts the text of an option: that of ``int | None`` is int; text is left as it is."""
    first = ast.unparse(annotation).partition(" | ")[0]
    return _TYPES.get(first, str)


def _descriptions(document: str) -> dict[str, str]:
    """The descriptions in the section ``Args:``, as plain text without a full stop."""
    section = inspect.cleandoc(document).partition("Args:\n")[2]
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line.strip() and not line.startswith("    "):
            break
        head = re.match(r" {4}\*{0,2}(\w+): (.*)", line)
        if head is not None:
            name = head[1]
            texts[name] = head[2]
        elif name:
            texts[name] = f"{texts[name]} {line.strip()}".rstrip()
    return {name: _plain(text) for name, text in texts.items()}


def _plain(text: str) -> str:
    """Without the marks of reStructuredText, and with the meaning of None in brackets, as help pages have defaults."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", "").rstrip(".")
    text = re.sub(r"[;.] (?:None|default): ([^;.]*)$", r" [\1]", text)
    return text.replace("%", "%%")  # argparse expands placeholders such as %(default)s
