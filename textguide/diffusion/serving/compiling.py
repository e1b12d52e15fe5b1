"""Constraints in requests to a server of canvases, compiled in another process before a run begins.

:func:`handler` runs in that process (:mod:`textguide.serving.compiler_process`), :func:`compile_constraints` in the
server.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from ...constraints import JSONSchema, Regex, Vocabulary, resolve
from ...guidance import as_guidance
from ...guidance.base import parts_of
from ...serving.compilers import Compilers
from ...serving.errors import RefusedError
from ...serving.limits import Limits
from ...serving.rules import Rules
from ...support.errors import MissingExtraError
from ..constraints.resolve import automaton_of_canvas

HANDLER = f"{__name__}:handler"
FIELDS = ("constraint", "guidance")
"""Fields that may bring a constraint."""


def setup(model: Any, rules: Rules) -> dict[str, Any]:
    """What :func:`handler` needs to know, as JSON.

    Args:
        model: a denoiser.
        rules: what requests may ask for.
    """
    vocabulary = Vocabulary.of(model.tokenizer, model.size, ())
    return {
        "tokens": [token.decode("latin-1") for token in vocabulary.tokens],
        "drops_leading_space": vocabulary.drops_leading_space,
        "ends": [] if model.end_id is None else [model.end_id],
        "forbidden": list(model.forbidden),
        "limits": vars(rules.limits),
        "named": list(rules.named),
    }


def handler(values: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], None]:
    """The function that compiles the constraints of a request.

    Args:
        values: as :func:`setup` returns them.

    Returns:
        It is called with a ``field`` of a request and its ``value``, and raises a ``ValueError`` if a constraint in it
        cannot be compiled.
    """
    tokens = tuple(token.encode("latin-1") for token in values["tokens"])
    blank = Vocabulary(tokens, frozenset(), values["drops_leading_space"])
    vocabularies = (blank.with_ends(values["ends"]), blank)  # after a prompt, and in texts with masks
    forbidden = tuple(values["forbidden"])
    rules = Rules(Limits(**values["limits"]), tuple(values["named"]))
    for vocabulary in vocabularies:  # prepares the tokens for all jobs, and imports what they need
        Regex("a").start(vocabulary)
        with contextlib.suppress(MissingExtraError, ValueError):  # no token may begin a document
            JSONSchema({"type": "integer"}).start(vocabulary)

    def compile_all(job: Mapping[str, Any]) -> None:
        for value in _constraints(job["field"], job["value"], rules):
            constraint = resolve(value)
            vocabulary = vocabularies[bool(job["infill"])]
            automaton, _, is_exact = automaton_of_canvas(constraint, vocabulary, forbidden)
            if automaton is None or not is_exact:  # as for a canvas
                constraint.start(vocabulary)

    return compile_all


def _constraints(field: str, value: Any, rules: Rules) -> list[Any]:
    """The constraints in a field of a request."""
    if field == "constraint":
        rules.constraint(value)
        return [value]
    if isinstance(value, str):
        value = [part.to_dict() for part in parts_of(as_guidance(rules.text(value, field)))]
    guidance = rules.guidance(value, "diffusion")
    found = [getattr(part, "constraint", None) for part in parts_of(guidance)]
    return [constraint for constraint in found if constraint is not None]


async def compile_constraints(values: Mapping[str, Any], compilers: Compilers) -> None:
    """Compile the constraints of a request, unless this server knows them.

    Args:
        values: the request.
        compilers: the processes.

    Raises:
        RefusedError: one cannot be compiled within the limits of the server.
        BusyError: too many are being compiled.
    """
    for field in FIELDS:
        value = values.get(field)
        if value is None:
            continue
        try:
            text = value if isinstance(value, str) else json.dumps(value)
        except RecursionError:
            raise RefusedError(f"{field} is nested too deeply; simplify it", field) from None
        # A backslash may hide the word.
        if field != "constraint" and "constraint" not in text and "\\" not in text:
            continue
        compilers.check_size(field, text)
        await compilers.check(field, {"field": field, "value": value, "infill": values.get("infill") is True})
