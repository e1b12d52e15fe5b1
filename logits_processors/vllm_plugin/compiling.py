"""Constraints of requests, compiled in another process before the front end checks the rest of a request.

:func:`handler` runs in that process (:mod:`textguide.serving.compiler_process`), :func:`compile_constraint` in the
front end. Knows no vLLM but the names of fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from textguide.constraints import Regex, Vocabulary
from textguide.guidance import AWRS, as_guidance, split
from textguide.serving.compilers import Compilers
from textguide.support.checks import is_whole_number

from .arguments import ARGUMENTS, GUIDANCE, without_short_arguments
from .constraint_arguments import (
    AWRS_ARGUMENTS,
    PORTABLE_ARGUMENTS,
    awrs_of,
    compiled_digest,
    note_compiled,
    short_arguments,
)
from .constraints import ENGINE, constraint_of
from .request_fields import XARGS
from .request_guidance import without_json

HANDLER = f"{__name__}:handler"


def setup(tokenizer: Any, size: int) -> dict[str, Any]:
    """What :func:`handler` needs to know, as JSON.

    Args:
        tokenizer: that of the language model.
        size: its number of tokens.
    """
    vocabulary = Vocabulary.of(tokenizer, size, ())
    return {
        "tokens": [token.decode("latin-1") for token in vocabulary.tokens],
        "drops_leading_space": vocabulary.drops_leading_space,
        "specials": list(vocabulary.specials),
        "end": tokenizer.eos_token_id,
    }


def handler(values: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], str | None]:
    """The function that compiles the constraint of a request.

    Args:
        values: as :func:`setup` returns them.

    Returns:
        It is called with ``arguments`` of guidance and ``ends``, further tokens that end the text, and returns the hash
        of the constraint; None if there is none to compile. It raises a ``ValueError`` if that is impossible.
    """
    tokens = tuple(token.encode("latin-1") for token in values["tokens"])
    specials = tuple((name, token) for name, token in values["specials"])
    blank = Vocabulary(tokens, frozenset(), values["drops_leading_space"], specials)
    end = values["end"]
    usual = blank.with_ends([] if end is None else [end])
    Regex("a", engine=ENGINE).start(usual)  # prepares the tokens for all jobs

    def compile_one(job: Mapping[str, Any]) -> str | None:
        found = _constraint_in(job["arguments"])
        if found is None:
            return None
        arguments, name = found
        try:
            guidance = awrs_of(arguments, {})
            assert guidance is not None
            vocabulary = usual.with_ends({*usual.ends, *job["ends"]}) if job["ends"] else usual
            constraint_of(guidance, {}).start(vocabulary)
        except ValueError as error:
            message = str(error)
            if GUIDANCE in job["arguments"]:
                message = without_short_arguments(message)
            raise ValueError(message) from None
        return compiled_digest(name, arguments[name])

    return compile_one


def _constraint_in(arguments: Mapping[str, Any]) -> tuple[Mapping[str, Any], str] | None:
    """The short arguments of a constraint, and the name of the one with its text; None if there is none, or if the
    arguments are wrong, which the front end finds out without compiling anything."""
    if arguments.get(GUIDANCE) is not None:
        try:
            sampling = split(as_guidance(without_json(arguments[GUIDANCE]))).sampling
            if not isinstance(sampling, AWRS):
                return None
            arguments = short_arguments(sampling)
        except (ValueError, TypeError, OverflowError, AttributeError, KeyError):
            return None
    names = [name for name in PORTABLE_ARGUMENTS if arguments.get(name) is not None]
    if len(names) != 1 or not isinstance(arguments[names[0]], str):
        return None
    kept = {name: value for name, value in arguments.items() if name in (*AWRS_ARGUMENTS, names[0])}
    return kept, names[0]


async def compile_constraint(body: Any, compilers: Compilers) -> None:
    """Compile the constraint of a request, if it has one that this front end does not know.

    Args:
        body: of the request, after :func:`~.request_fields.gather`.
        compilers: the processes.

    Raises:
        RefusedError: it cannot be compiled within the limits of the server.
        BusyError: too many are being compiled.
    """
    if not isinstance(body, dict):
        return
    parameters = body.get("sampling_params")
    parameters = parameters if isinstance(parameters, dict) else body
    arguments = _arguments(body, parameters)
    field = _field(arguments)
    if field is None:
        return
    value = arguments[field]
    compilers.check_size(field, value if isinstance(value, str) else json.dumps(value))
    ends = parameters.get("stop_token_ids")
    if not isinstance(ends, list) or not all(is_whole_number(end) and end >= 0 for end in ends):
        ends = []  # vLLM refuses it
    names = (field, *AWRS_ARGUMENTS) if field != GUIDANCE else (field,)
    job = {
        "arguments": {name: arguments[name] for name in names if arguments.get(name) is not None},
        "ends": sorted(set(ends)),
    }
    digest = await compilers.check(field, job, names)
    if digest is not None:
        note_compiled(digest)


def _arguments(body: Mapping[str, Any], parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of guidance in the body of a request."""
    inside = body.get(XARGS)
    if isinstance(inside, dict) and ARGUMENTS in inside:
        arguments: Mapping[str, Any] = json.loads(inside[ARGUMENTS])
        return arguments
    extra = parameters.get("extra_args")
    return extra if isinstance(extra, dict) else {}


def _field(arguments: Mapping[str, Any]) -> str | None:
    """The argument that may bring a constraint; None if none does."""
    guidance = arguments.get(GUIDANCE)
    if guidance is not None:
        text = guidance if isinstance(guidance, str) else json.dumps(guidance)
        # A backslash may hide the word.
        return GUIDANCE if "constraint" in text or "\\" in text else None
    return next((name for name in PORTABLE_ARGUMENTS if arguments.get(name) is not None), None)
