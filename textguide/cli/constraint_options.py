"""Arguments that say what may be generated."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

FORMS = ("regex", "json_schema", "grammar", "constraint")
"""Arguments of which one says what the form is."""


def add_constraint(parser: argparse.ArgumentParser) -> Any:
    """``--regex`` and its like, and ``--lookahead``; the group, for further options."""
    group = add_form(parser)
    group.add_argument(
        "--lookahead",
        metavar="NAME",
        help="what is foreseen of a text: automaton (the tokens that it needs against those left), hmm, the file of "
        "one or of a value, or none [auto: the first, where the constraint has one]",
    )
    return group


def add_form(parser: argparse.ArgumentParser) -> Any:
    """``--regex`` and its like, of which one may be given; the group, for further options."""
    group = parser.add_argument_group("constraint")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--regex", metavar="PATTERN", help="the continuation matches this regular expression as a whole")
    one.add_argument("--json-schema", metavar="FILE", help="the continuation is a JSON document of the schema in FILE")
    one.add_argument("--grammar", metavar="FILE", help="the continuation is a text of the Lark grammar in FILE")
    one.add_argument(
        "--constraint",
        metavar="LINE",
        help="the continuation is a text of this constraint: sql:DATABASE, python:MODULE:NAME, …",
    )
    group.add_argument(
        "--json-whitespace",
        metavar="WHERE",
        help="with --json-schema: flexible, any, none, or a regular expression of what may stand between [flexible]",
    )
    group.add_argument(
        "--after",
        dest="form_after",
        metavar="TEXT",
        help="free text comes first, up to this one, such as '</think>', or to a match of regex:PATTERN",
    )
    return group


def constraint(arguments: argparse.Namespace, engine: str | None = None) -> Any:
    """The constraint that :func:`add_constraint`'s arguments describe; None where they describe none.

    Args:
        engine: what checks it; None: its own default.

    Raises:
        ValueError: it cannot be used, or its file not be read; the message names the argument.
    """
    from ..constraints import Grammar, JSONSchema, Regex, resolve

    if arguments.json_whitespace is not None and arguments.json_schema is None:
        raise ValueError(
            f"--json-whitespace {arguments.json_whitespace} needs --json-schema; add it, or leave this out"
        )
    options: dict[str, Any] = {} if engine is None else {"engine": engine}
    try:
        if arguments.regex is not None:
            return Regex(arguments.regex, **options)
        if arguments.json_schema is not None:
            return JSONSchema(
                Path(arguments.json_schema), whitespace=arguments.json_whitespace or "flexible", **options
            )
        if arguments.grammar is not None:
            return Grammar(Path(arguments.grammar), **options)
        if arguments.constraint is not None:
            return resolve(arguments.constraint, engine)
    except ValueError as error:
        names = {f"--{name.replace('_', '-')}": getattr(arguments, name) for name in FORMS}
        name, value = next((name, value) for name, value in names.items() if value is not None)
        raise ValueError(f"{name} {value}: {error}") from None
    return None
