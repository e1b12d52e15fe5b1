"""The fields of guidance in the body of a request, before vLLM reads it.

vLLM ignores fields that it does not know, so that guidance at the top level of a request would be lost in silence. And
its ``vllm_xargs`` hold no objects, and make numbers of true and false. So the arguments of guidance are taken out of
both and travel as JSON text in one argument (:data:`~.arguments.ARGUMENTS`). Knows no vLLM but the names of its fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from textguide.constraints import tool_calls
from textguide.serving.field_names import check_number, hidden, meant
from textguide.support.checks import brief

from .arguments import ARGUMENTS, BEAMS, KNOWN, NO_BEAMS, OWN, PREFIXES, ArgumentError
from .constraint_arguments import TAGS
from .constraints import ENGINE

XARGS = "vllm_xargs"
TOOLS = "awrs_tools"
"""The field that makes a constraint of OpenAI's ``tools`` and ``tool_choice``."""
ROUTES = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/responses",
    "/v1/messages",
    "/invocations",
)
"""The paths at which requests can be guided by fields; ``…/render`` shows what they would be."""
TOKENS_IN = "/inference/v1/generate"
"""The path whose requests have sampling parameters, with the arguments of guidance in ``extra_args``."""


def gather(body: Any, path: str, query: Iterable[str] = ()) -> None:
    """Move the arguments of guidance in the body of a request into one argument of vLLM's, in place.

    Args:
        body: the body as JSON values.
        path: of the request.
        query: names of the parameters in its address.

    Raises:
        ValueError: a field of guidance is misspelt, or in a place where it would have no effect; an
            :class:`~.arguments.ArgumentError` if it is about one field.
    """
    for name in query:
        if _is_ours(name):
            raise ArgumentError(f"{name} is in the address; send it in the body", name)
    if not isinstance(body, dict):
        return
    xargs = body.get(XARGS)
    inside = xargs if isinstance(xargs, dict) else {}
    if path.removesuffix("/render") not in ROUTES:
        _refuse_all((body, inside), path)
        return
    gather_tools(body)
    _check_names(body)
    _check_names(inside)
    _check_places(body)
    arguments = _taken(body, inside)
    if arguments:
        if xargs is not None and not isinstance(xargs, dict):
            raise ArgumentError(f"{XARGS}={brief(xargs)} must be an object", XARGS)
        if body.get(BEAMS):
            raise ArgumentError(NO_BEAMS, BEAMS)
        body[XARGS] = {**inside, ARGUMENTS: json.dumps(arguments)}


def gather_tools(body: dict[str, Any]) -> None:
    """Make the argument ``awrs_tags`` of ``awrs_tools`` and OpenAI's ``tools`` and ``tool_choice``, in place.

    vLLM then reads ``tool_choice`` as ``auto``: its own masks are not used, and its parser reads the calls.

    Raises:
        ValueError: there are no tools, or one of them cannot be used; an :class:`~.arguments.ArgumentError`.
    """
    wanted = body.pop(TOOLS, None)
    if wanted is None or wanted is False:
        return
    if wanted is not True:
        raise ArgumentError(f"{TOOLS}={brief(wanted)} must be true or false", TOOLS)
    choice = body.get("tool_choice", "auto")
    if choice == "none":
        return
    if not isinstance(body.get("messages"), list):
        raise ArgumentError(f"{TOOLS} needs a chat with tools; send it to /v1/chat/completions", TOOLS)
    parallel = body.pop("parallel_tool_calls", None)  # vLLM would make a mask for false
    try:
        calls = tool_calls(body.get("tools") or (), choice, parallel is not False, engine=ENGINE)
    except ValueError as error:
        raise ArgumentError(f"{TOOLS}: {error}", TOOLS) from None
    body[TAGS] = calls.to_dict()
    body["tool_choice"] = "auto"
    for tool in body["tools"]:
        tool["function"].pop("strict", None)  # the constraint is strict, and vLLM would make a mask


def _is_ours(name: str) -> bool:
    return name in KNOWN or meant(name, KNOWN, PREFIXES) is not None


def _taken(body: dict[str, Any], inside: dict[str, Any]) -> dict[str, Any]:
    """The arguments of guidance that are not null; all are removed from the body and from its ``vllm_xargs``."""
    arguments: dict[str, Any] = {}
    for values in (body, inside):
        for name in [name for name in values if name in KNOWN]:
            if name in arguments:
                raise ArgumentError(f"{name} is given twice, at the top level and in {XARGS}; send it once", name)
            arguments[name] = values.pop(name)
    return {name: value for name, value in arguments.items() if value is not None}


def _check_places(body: dict[str, Any]) -> None:
    """Refuse fields of guidance inside an object of the body, where nothing reads them."""
    outside = {name: value for name, value in body.items() if name != XARGS and name not in KNOWN}
    place = hidden(outside, KNOWN, PREFIXES)
    if place is not None:
        raise ArgumentError(f"{place} has no effect there; send it at the top level, or in {XARGS}", place)


def _check_names(values: dict[str, Any]) -> None:
    check_number(len(values))
    for name in values:
        if name in OWN:
            raise ArgumentError(f"{name!r} is not a field of requests; use guidance", name)
        known = None if name in KNOWN else meant(name, KNOWN, PREFIXES)
        if known is not None:
            raise ArgumentError(f"{name!r} is not a field of guidance; use {known}", name)


def _refuse_all(places: Iterable[dict[str, Any]], path: str) -> None:
    """Refuse fields of guidance at a path that does not take them."""
    for values in places:
        check_number(len(values))
        for name in filter(_is_ours, values):
            remedy = "put it into extra_args of sampling_params" if path == TOKENS_IN else f"use {ROUTES[0]}"
            raise ArgumentError(f"{name} has no effect at {path}; {remedy}", name)
