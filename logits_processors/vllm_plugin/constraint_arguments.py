"""AWRS in requests: from short arguments and JSON to a checked guidance, and back for the way to an engine.

Patterns, schemas and grammars come with requests. Whatever runs Python code is named when the engine starts. Knows no
vLLM.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from textguide.constraints import Grammar, JSONSchema, Regex, Tags, from_dict, resolve
from textguide.guidance import AWRS
from textguide.support.checks import brief

from .constraints import BACKTRACKING, CRITIC, ENGINE, NAMED, engine_constraint, engine_critic

CONSTRAINT_ARGUMENTS = ("awrs_regex", "awrs_json_schema", "awrs_grammar", "awrs_tags", "awrs_constraint")
AWRS_ARGUMENTS = {
    "awrs_particles": "particles",
    "awrs_ess_threshold": "ess_threshold",
    "awrs_resampling": "resampling",
    "awrs_max_rejects": "max_rejects",
    "awrs_estimator": "estimator",
    "awrs_accepts": "accepts",
    "awrs_after": "after",
}
_PORTABLE: dict[Any, tuple[str, str]] = {
    Regex: ("awrs_regex", "pattern"),
    JSONSchema: ("awrs_json_schema", "schema"),
    Grammar: ("awrs_grammar", "grammar"),
}
"""Constraints that travel with a request: the short argument of each, and the field with its text."""
_ARGUMENTS_BY_KIND = {kind.kind: names for kind, names in _PORTABLE.items()}
TAGS = "awrs_tags"
PORTABLE_ARGUMENTS = (*(name for name, _ in _PORTABLE.values()), TAGS)
"""Arguments with a constraint that is compiled for the request."""
_ARGUMENTS_BY_PREFIX = {"regex": "awrs_regex", "json-schema": "awrs_json_schema", "grammar": "awrs_grammar"}
_OTHER_FIELDS = {
    "engine": ENGINE,
    "whitespace": "flexible",
    "lenient": False,
    "longest_string": None,
    "order": "schema",
    "draft": None,
    "schemas": None,
    "assert_formats": True,
}
"""Further fields of constraints in JSON: the values that short arguments stand for."""


def awrs_of(extra: Mapping[str, Any], named: Mapping[str, str]) -> AWRS | None:
    """The AWRS that short arguments describe, with its constraint as a description; None without a constraint.

    Args:
        extra: ``extra_args`` of a request.
        named: as :func:`~.extras.constraints_of` returns them.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.
    """
    names = [name for name in CONSTRAINT_ARGUMENTS if extra.get(name) is not None]
    options = {field: extra[name] for name, field in AWRS_ARGUMENTS.items() if extra.get(name) is not None}
    if not names:
        if extra.get(CRITIC) is not None:
            return _checked("awrs", None, options)  # a critic weighs any text
        if options:
            first = next(name for name in AWRS_ARGUMENTS if extra.get(name) is not None)
            raise ValueError(
                f"{first}={extra[first]!r} needs a constraint; give one of {', '.join(CONSTRAINT_ARGUMENTS)}"
            )
        return None
    if len(names) > 1:
        raise ValueError(f"{names[0]} and {names[1]} exclude each other; give one of them")
    name = names[0]
    value = extra[name]
    if name in ("awrs_json_schema", TAGS) and isinstance(value, Mapping):
        value = json.dumps(value)
    if not isinstance(value, str):
        raise ValueError(f"{name}={brief(value)} must be a text")
    try:
        description = _description(name, value, named)
    except ValueError as error:
        raise _with_argument(name, str(error)) from None
    return _checked(name, description, options)


def _checked(name: str, description: dict[str, Any] | None, options: Mapping[str, Any]) -> AWRS:
    try:
        return AWRS(description, **options)
    except (ValueError, TypeError) as error:
        message = str(error)
        for argument, field in AWRS_ARGUMENTS.items():
            message = message.replace(f"{field}=", f"{argument}=")
        raise _with_argument(name, message) from None


def _with_argument(name: str, message: str) -> ValueError:
    """An error whose message names the argument."""
    return ValueError(message if message.startswith("awrs_") else f"{name}: {message}")


def _description(name: str, value: str, named: Mapping[str, str]) -> dict[str, Any]:
    """The constraint of an argument, as a description that travels."""
    if is_compiled(name, value):
        return _compiled_description(name, value)
    if name == "awrs_regex":
        try:
            return Regex(value, engine=ENGINE).to_dict()
        except ValueError as error:
            remedy = "name it when the engine starts: --constraint NAME=regex:PATTERN"
            raise ValueError(str(error).replace(f"engine={BACKTRACKING!r} takes it", remedy)) from None
    if name == "awrs_json_schema":
        try:
            # A text that is not JSON would be read as the path of a file.
            schema = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"awrs_json_schema={brief(value)} is not JSON ({error})") from None
        return JSONSchema(schema, engine=ENGINE).to_dict()
    if name == "awrs_grammar":
        # A text with a newline is not read as a path either.
        return Grammar(f"{value}\n", engine=ENGINE).to_dict()
    if name == TAGS:
        return _tags(value)
    if value not in named:
        known = f"those are {', '.join(sorted(named))}" if named else "it was started with none"
        raise ValueError(f"awrs_constraint={brief(value)} is not a constraint of this engine; {known}")
    return {NAMED: value}


def _tags(value: str) -> dict[str, Any]:
    """The description of tags, whose contents are checked by the engine of requests."""
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{TAGS}={brief(value)} is not JSON ({error})") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("tags"), list):
        raise ValueError(f"{TAGS}={brief(value)} must be an object with the field tags, a list")
    tags = []
    for tag in fields["tags"]:
        if not isinstance(tag, dict):
            raise ValueError(f"{TAGS} contains {brief(tag)}; each tag is an object with begin, constraint and end")
        content = tag.get("constraint")
        argument = _argument_of_line(content) if isinstance(content, str) else None
        if isinstance(content, dict):
            argument = _argument_of_description(content)
        if argument is None or argument[0] not in PORTABLE_ARGUMENTS:
            raise ValueError(
                f"{TAGS} contains the constraint {brief(content)}, which does not travel with a request; give a line "
                f"such as 'regex:[0-9]+', or an object with the kind {', '.join(_ARGUMENTS_BY_KIND)} and the engine "
                f"{ENGINE!r}"
            )
        tags.append({**tag, "constraint": _description(*argument, {})})
    return from_dict({**fields, "kind": "tags", "tags": tags}).to_dict()


_compiled: OrderedDict[str, None] = OrderedDict()
MOST_COMPILED = 1024


def note_compiled(digest: str) -> None:
    """Note that another process has compiled an argument, so that this one needs not; see :func:`compiled_digest`."""
    _compiled[digest] = None
    _compiled.move_to_end(digest)
    while len(_compiled) > MOST_COMPILED:
        _compiled.popitem(last=False)


def is_compiled(name: str, value: Any) -> bool:
    """Whether another process has compiled this argument."""
    return isinstance(value, str) and name in PORTABLE_ARGUMENTS and compiled_digest(name, value) in _compiled


def compiled_digest(name: str, value: str) -> str:
    """A hash of an argument with a constraint."""
    return hashlib.sha256(f"{name} {value}".encode(errors="surrogatepass")).hexdigest()


def _compiled_description(name: str, value: str) -> dict[str, Any]:
    """What :func:`_description` makes of an argument, without compiling it again.

    A schema stays a text, since JSON that is nested deeply does not travel.
    """
    if name == TAGS:
        return _tags(value)
    for kind, (argument, field) in _PORTABLE.items():
        if argument == name:
            text = f"{value}\n" if name == "awrs_grammar" else value
            return {"kind": kind.kind, field: text, "engine": ENGINE}
    raise ValueError(f"{name} is not a constraint that requests bring")


def short_arguments(guidance: AWRS) -> dict[str, Any]:
    """The short arguments that are equal to ``guidance``, which came with a request as JSON.

    Raises:
        ValueError: it needs something that no request can have; the message names it.
    """
    _check_sampler(guidance)
    arguments = {}
    for name, field in AWRS_ARGUMENTS.items():
        value = getattr(guidance, field)
        if value is not None:
            arguments[name] = value
    constraint = guidance.constraint
    if constraint is None:  # a critic weighs any text
        return arguments
    argument: tuple[str, str] | None = None
    if isinstance(constraint, Mapping):
        argument = _argument_of_description(constraint)
    elif isinstance(constraint, str):
        argument = _argument_of_line(constraint)
    if argument is None:
        raise ValueError(
            f"constraint={brief(constraint)} does not travel with a request; give a line such as "
            f"'regex:[0-9]+', an object with the kind {', '.join(_ARGUMENTS_BY_KIND)} and the engine {ENGINE!r}, or "
            f"{{{NAMED!r}: NAME}} for one that the engine was started with"
        )
    name, text = argument
    return {**arguments, name: text}


def _argument_of_description(constraint: Mapping[str, Any]) -> tuple[str, str] | None:
    """The short argument, and its text, of a constraint as an object; None if there is none."""
    fields = dict(constraint)
    if set(fields) == {NAMED}:
        return "awrs_constraint", fields[NAMED]
    if fields.get("kind") == "tags":
        return TAGS, json.dumps(fields)
    name, field = _ARGUMENTS_BY_KIND.get(str(fields.pop("kind", None)), ("", ""))
    text = fields.pop(field, None)
    if name == "awrs_json_schema" and not isinstance(text, str):
        text = json.dumps(text)
    if not name or not isinstance(text, str):
        return None
    if any(key not in _OTHER_FIELDS or _OTHER_FIELDS[key] != value for key, value in fields.items()):
        return None
    return name, text


def _argument_of_line(constraint: str) -> tuple[str, str] | None:
    """The short argument, and its text, of a constraint as a line; None if there is none."""
    kind, _, text = constraint.partition(":")
    is_path = (kind == "json-schema" and text.lstrip()[:1] != "{") or (kind == "grammar" and "\n" not in text)
    if kind not in _ARGUMENTS_BY_PREFIX or is_path:
        return None
    return _ARGUMENTS_BY_PREFIX[kind], text


def _check_sampler(guidance: AWRS) -> None:
    if guidance.sampler != "awrs":
        raise ValueError(
            f"guidance={guidance}: requests draw their tokens once; give AWRS(constraint, particles=…) with "
            "sampler='awrs', structured_outputs, which are vLLM's own masks, or textguide.generate for "
            f"sampler={guidance.sampler!r}"
        )
    if guidance.lookahead not in (None, "auto"):
        raise ValueError(
            f"lookahead={guidance.lookahead!r} does not work inside vLLM, which has no lookahead; leave it out, or use "
            "textguide.generate"
        )


def awrs_as_json(guidance: AWRS, named: Mapping[str, str]) -> dict[str, Any]:
    """``guidance`` as the JSON that a request carries.

    Args:
        guidance: its critic is not part of the result; see :func:`critic_name`.
        named: as :func:`~.extras.constraints_of` returns them.

    Raises:
        ValueError: it needs something that no request can have; the message names it.
    """
    _check_sampler(guidance)
    if callable(guidance.after):
        raise ValueError(f"after={guidance.after!r} is a function, and does not travel with a request; give a text")
    options = {field: getattr(guidance, field) for field in AWRS_ARGUMENTS.values()}
    if guidance.constraint is None:
        return {"method": guidance.name, **options}
    constraint = resolve(guidance.constraint, engine=ENGINE)
    if isinstance(constraint, Regex):
        # A Regex chooses its engine on its own if none is named.
        constraint = constraint.on(ENGINE)
    for name, text in named.items():
        if engine_constraint(name, text) == constraint:
            return {"method": guidance.name, "constraint": {NAMED: name}, **options}
    if isinstance(constraint, Tags):
        return {"method": guidance.name, "constraint": _tags(json.dumps(constraint.to_dict())), **options}
    for kind, (_, field) in _PORTABLE.items():
        if isinstance(constraint, kind) and constraint.engine == ENGINE:
            text = getattr(constraint, field)
            if constraint == kind(text, engine=ENGINE):  # no other field is set
                description = {"kind": kind.kind, field: text, "engine": ENGINE}
                return {"method": guidance.name, "constraint": description, **options}
    raise ValueError(
        f"constraint={constraint!r} does not travel with a request; give a line such as 'regex:[0-9]+', a Regex, "
        f"JSONSchema or Grammar with engine={ENGINE!r}, or one that the engine was started with: "
        "textguide.vllm_engine(model, constraints={'NAME': 'python:MODULE:NAME'})"
    )


def critic_name(guidance: AWRS, critics: Mapping[str, str]) -> str | None:
    """The engine's name of the critic of ``guidance``; None if it has no critic.

    Args:
        guidance: the guidance.
        critics: as :func:`~.extras.critics_of` returns them.

    Raises:
        ValueError: the engine does not have it.
    """
    if guidance.critic is None:
        return None
    for name, path in critics.items():
        if engine_critic(name, path) is guidance.critic:
            return name
    raise ValueError(
        f"critic={guidance.critic!r} does not travel with a request; name it when the engine starts: "
        "textguide.vllm_engine(model, critics={'NAME': 'python:MODULE:NAME'})"
    )
