"""Options of constraints: what may be generated, and how texts are sampled under it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..support.options import add_options
from .signatures import names_in, settings_of, values_of

CONSTRAINTS = ("regex", "json_schema", "grammar", "quote", "constraint")
"""Options of which one describes the constraint."""
SAMPLERS = names_in("guidance/awrs.py", "SAMPLERS")
SAMPLING = settings_of(
    "guidance/awrs.py",
    "AWRS",
    "lookahead particles sampler",
    lookahead={
        "default": None,
        "metavar": "NAME",
        "help": "prediction of whether a text can still satisfy the constraint in time: automaton (compares the tokens "
        "that it needs with those left), hmm, a file from textguide lookahead train, or none [auto: automaton, if the "
        "constraint has one]",
    },
    particles={
        "default": None,
        "help": "texts per prompt that are weighted and resampled; one of them is drawn by weight [1]",
    },
    sampler={
        "default": None,
        "choices": SAMPLERS,
        "help": "awrs keeps the model's own distribution among the valid texts, with weights; cars does so exactly, "
        "with texts that start again; asap learns from failed texts; mask rules tokens out one step at a time [awrs]",
    },
)


def add_constraint(parser: argparse.ArgumentParser) -> Any:
    """Add ``--regex`` and the others, of which one may be given; returns the group, for more options."""
    group = parser.add_argument_group("constraint")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--regex", metavar="PATTERN", help="the whole continuation matches this regular expression")
    one.add_argument("--json-schema", metavar="FILE", help="the continuation is a JSON document of the schema in FILE")
    one.add_argument("--grammar", metavar="FILE", help="the continuation is a text of the Lark grammar in FILE")
    one.add_argument(
        "--quote",
        metavar="PATH",
        help="the continuation appears verbatim in a file, or in a file of a folder; it starts and ends between words",
    )
    one.add_argument(
        "--constraint",
        metavar="LINE",
        help="the continuation satisfies this constraint: sql:DATABASE, python:MODULE:NAME…",
    )
    group.add_argument(
        "--json-whitespace",
        metavar="KIND",
        help="whitespace for --json-schema: flexible, any, none, or a regular expression for it [flexible]",
    )
    group.add_argument(
        "--after",
        metavar="TEXT",
        help="free text comes first, and ends with this text, such as '</think>', or with a match of regex:PATTERN",
    )
    return group


def add_sampling(parser: argparse.ArgumentParser, every_text: bool = True) -> None:
    """Add a constraint, and how texts are sampled under it.

    Args:
        parser: the parser.
        every_text: whether the command can print all texts of a prompt.
    """
    group = add_constraint(parser)
    add_options(group, SAMPLING)
    group.add_argument(  # the former name
        "--constraint-method", dest="sampler", choices=SAMPLERS, help=argparse.SUPPRESS
    )
    if every_text:
        group.add_argument("--all-particles", action="store_true", help="print every particle with its weight")


def is_given(arguments: argparse.Namespace) -> bool:
    """Whether the arguments describe a constraint."""
    return any(getattr(arguments, name, None) is not None for name in CONSTRAINTS)


def constraint(arguments: argparse.Namespace, engine: str | None = None) -> Any:
    """The constraint that :func:`add_constraint`'s arguments describe; None if they describe none.

    Args:
        arguments: the parsed arguments.
        engine: the engine that checks the constraint; None: the default one.

    Raises:
        ValueError: the constraint is invalid, or its file cannot be read; the message names the option.
    """
    if arguments.json_whitespace is not None and arguments.json_schema is None:
        raise ValueError(
            f"--json-whitespace {arguments.json_whitespace} needs --json-schema; add it, or leave this out"
        )
    for name in CONSTRAINTS:
        value = getattr(arguments, name)
        if value is None:
            continue
        try:
            return _constraint(name, value, arguments.json_whitespace or "flexible", engine)
        except ValueError as error:
            raise ValueError(f"--{name.replace('_', '-')} {value}: {error}") from None
    return None


def _constraint(name: str, value: str, whitespace: str, engine: str | None) -> Any:
    from ..constraints import Corpus, Grammar, JSONSchema, Regex, resolve
    from ..constraints.quotes import files_in

    options: dict[str, Any] = {} if engine is None else {"engine": engine}
    if name == "regex":
        return Regex(value, **options)
    if name == "json_schema":
        return JSONSchema(Path(value), whitespace=whitespace, **options)
    if name == "grammar":
        return Grammar(Path(value), **options)
    if name == "quote":
        return Corpus(files_in(Path(value)), whitespace="normalized", unit="word")
    return resolve(value, engine)


def constrained(arguments: argparse.Namespace, guidance: Any, engine: str | None = None) -> Any:
    """``guidance``, with the constraint that :func:`add_sampling`'s arguments describe.

    Args:
        arguments: the parsed arguments.
        guidance: the guidance.
        engine: the engine that checks the constraint; None: the default one.

    Raises:
        ValueError: an option needs a constraint, or has an invalid value.
    """
    from ..guidance import AWRS, as_guidance

    allowed = constraint(arguments, engine)
    if allowed is None:
        for name in ("particles", "sampler", "all_particles", "after", "lookahead"):
            if getattr(arguments, name, None):
                flag = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{flag} needs a constraint; add --regex, --json-schema, --grammar, --quote or --constraint"
                )
        return guidance
    fields = {name: value for name, value in values_of(SAMPLING, arguments).items() if value is not None}
    if fields.get("lookahead") == "none":
        fields["lookahead"] = None
    awrs = AWRS(allowed, after=arguments.after, **fields)
    return as_guidance([awrs] if guidance.is_neutral else [guidance, awrs])
