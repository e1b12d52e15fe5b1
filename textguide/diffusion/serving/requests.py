"""Requests to a server of a masked diffusion model: OpenAI's fields, and the options of a canvas."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...constraints import resolve
from ...guidance import Guidance
from ...guidance.composed import split
from ...guidance.particle_gibbs import ParticleGibbs
from ...guidance.spec import as_guidance
from ...serving.errors import RefusedError
from ...serving.field_names import meant, named_field
from ...serving.rules import Rules
from ...serving.schema import RequestField, brief, field_names
from ...support.checks import is_whole_number
from ..denoisers import Denoiser
from ..options import CanvasOptions
from ..run import CanvasRun

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1, 1.0),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "min_tokens": (0,),
    "top_k": (0, -1),
}
"""OpenAI's fields that a canvas cannot honour, with the values that ask for nothing."""
IGNORED = ("user", "store", "metadata", "stream_options")
STREAM_OPTIONS = ("include_usage", "include_obfuscation", "continuous_usage_stats")
SHORT = ("guidance", "guidance_scale", "negative_prompt")
"""Fields that somebody may mean who writes a similar one."""
COMMON = ("model", "n", "stream", "stop", "guidance")
MOST_STOPS = 4


@dataclass(frozen=True)
class CanvasRequest:
    """One request.

    Args:
        chat: it came to the chat endpoint.
        prompts: texts, token ids or chats, one per row; those of ``n`` answers are adjacent.
        options: how the canvas is filled.
        guidance: None for plain decoding.
        stop: the answer ends before the first of these texts.
        stream: whether the canvas is sent step by step.
        usage: whether a stream ends with the numbers of tokens.
        infill: the prompts contain the masks themselves.
    """

    chat: bool
    prompts: tuple[Any, ...]
    options: CanvasOptions
    guidance: Guidance | None
    stop: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False
    infill: bool = False

    @property
    def guided(self) -> bool:
        """Whether guidance or a constraint decodes the texts."""
        is_guided = self.guidance is not None and not self.guidance.is_neutral
        return is_guided or self.options.constraint is not None

    def run(self, model: Denoiser, models: Mapping[str, Any]) -> CanvasRun:
        """The run that answers the request.

        Raises:
            ValueError: the model cannot do it.
        """
        make = CanvasRun.in_texts if self.infill else CanvasRun.after_prompts
        return make(model, list(self.prompts), self.guidance, models, self.options)


def request_of(values: Mapping[str, Any], rules: Rules, chat: bool) -> CanvasRequest:
    """The request in the body of a request over HTTP.

    Raises:
        RefusedError: something in it is malformed, beyond the limits, or cannot be honoured; the message names it.
        ValueError: an option of the canvas has a value that cannot work.
    """
    schema = _canvas_fields(chat)
    _refuse_other_fields(values, schema, chat)
    given = {name: value for name, value in values.items() if value is not None}
    stream = _flag(given, "stream")
    infill = _flag(given, "infill")
    guidance = _named("guidance", lambda: guidance_of(given.get("guidance"), rules))
    if stream and infill:
        raise RefusedError("stream=true is for text after a prompt; leave it out with infill")
    if stream and isinstance(split(guidance).canvas, ParticleGibbs):
        raise RefusedError("stream=true shows one canvas, and particle-gibbs moves several; leave one of them out")
    prompts = _repeat(prompts_of(given, rules, chat), given, rules)
    return CanvasRequest(
        chat=chat,
        prompts=prompts,
        options=_options(given, schema, rules, infill),
        guidance=guidance,
        stop=stops_of(given, rules),
        stream=stream,
        usage=_flag(_stream_options(given), "include_usage"),
        infill=infill,
    )


def _canvas_fields(chat: bool) -> dict[str, RequestField]:
    """The options of a canvas, whose length also has OpenAI's names."""
    schema = CanvasOptions.request_fields()
    length = schema["max_new_tokens"]
    names = ("max_tokens", "max_completion_tokens") if chat else ("max_tokens",)
    return {**schema, "max_new_tokens": replace(length, aliases=(*length.aliases, *names))}


def _refuse_other_fields(values: Mapping[str, Any], schema: Mapping[str, RequestField], chat: bool) -> None:
    known = known_fields(schema, chat)
    for name, value in values.items():
        if name not in known:
            raise RefusedError(f"{brief(name)} is not a field of this server; {_suggestion(name, known)}", name)
        if name in NEUTRAL and value is not None and value not in NEUTRAL[name]:
            raise RefusedError(f"{name}={brief(value)} cannot be honoured on a canvas of masks; leave it out", name)


def _suggestion(name: str, known: tuple[str, ...]) -> str:
    similar = meant(name, SHORT) if name not in SHORT else name
    if similar == "guidance" and name != "guidance":
        return "use guidance"
    if similar is not None:
        return "write it into guidance, such as cfg:scale=1.5,negative_prompt=TEXT"
    close = difflib.get_close_matches(name[:60], known, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"


def field_of(error: Exception, chat: bool) -> str | None:
    """The field of a request that an error is about; None if it is about none."""
    if isinstance(error, RefusedError) and error.field is not None:
        return error.field
    return named_field(str(error), known_fields(_canvas_fields(chat), chat))


def known_fields(schema: Mapping[str, RequestField], chat: bool) -> tuple[str, ...]:
    """The names of all fields of a request."""
    own = ("messages",) if chat else ("prompt", "infill")
    return (*own, *COMMON, *field_names(schema), *NEUTRAL, *IGNORED)


def _named(field: str, read: Callable[[], Any]) -> Any:
    """What ``read`` returns; its errors are about ``field``, whose content they describe."""
    try:
        return read()
    except ValueError as error:
        raise RefusedError(str(error), field) from None


def _stream_options(given: Mapping[str, Any]) -> Any:
    values = given.get("stream_options") or {}
    for name in values if isinstance(values, Mapping) else ():
        if name not in STREAM_OPTIONS:
            place = f"stream_options.{name}"[:60]
            raise RefusedError(f"{place} is not a field of this server; known are {', '.join(STREAM_OPTIONS)}", place)
    return values


def _repeat(prompts: list[Any], given: Mapping[str, Any], rules: Rules) -> tuple[Any, ...]:
    """The prompts with ``n`` rows each."""
    count = RequestField((int,), 1, "particles").check("n", given.get("n", 1), rules.limits)
    if count * len(prompts) > rules.limits.rows:
        raise RefusedError(
            f"{len(prompts)} prompts times n={count} are more than the {rules.limits.rows} rows that a request may have"
        )
    return tuple(prompt for prompt in prompts for _ in range(count))


def _options(given: Mapping[str, Any], schema: Mapping[str, RequestField], rules: Rules, infill: bool) -> CanvasOptions:
    names = field_names(schema)
    values = {name: value for name, value in given.items() if name in names}
    if infill:
        accepted = CanvasOptions.request_fields(infilling=True)
        for name in values:
            if names[name] not in accepted:
                raise RefusedError(f"{name} is for text after a prompt; leave it out with infill")
    if "constraint" in values:
        _named("constraint", lambda: rules.constraint(values["constraint"]))
    options = rules.canvas_options(values, schema)
    if "constraint" in options:
        options["constraint"] = _named("constraint", lambda: resolve(options["constraint"]))
    options.setdefault("max_new_tokens", min(64, rules.limits.canvas))
    return CanvasOptions(**options)


def guidance_of(value: Any, rules: Rules) -> Guidance | None:
    """A guidance as JSON, or as the line of text that the command line accepts.

    Raises:
        RefusedError: it is malformed, names something of the server's machine, is too expensive, or does not run on a
            canvas.
    """
    if isinstance(value, str):
        text = rules.text(value, "guidance")
        if ".json" in text or "python:" in text:
            raise RefusedError(f"guidance={value!r} names a file or code; send the guidance itself")
        try:
            guidance = as_guidance(text)
        except (ValueError, TypeError) as error:
            raise RefusedError(str(error)) from None
        value = None if guidance is None else guidance.to_dict()
    elif value in ([], {}):
        raise RefusedError(f"guidance={value!r} names no method; name one, or leave it out")
    return rules.guidance(value, "diffusion")


def prompts_of(given: Mapping[str, Any], rules: Rules, chat: bool) -> list[Any]:
    """The prompts, one per row.

    Raises:
        RefusedError: there are none, or one is malformed or too long.
    """
    if chat:
        if not isinstance(given.get("messages"), list):
            raise RefusedError("messages must be a list of objects with a role and a content")
        return [rules.prompt(given["messages"])]
    value = given.get("prompt")
    if value is None:
        raise RefusedError("prompt is missing; give a text, token ids, or a list of these")
    if isinstance(value, str) or (value and _is_token_ids(value)):
        value = [value]
    if not isinstance(value, list) or not value:
        raise RefusedError("prompt must be a text, token ids, or a list of these")
    return [_prompt(one, rules) for one in value]


def _prompt(value: Any, rules: Rules) -> Any:
    """A text or a list of token ids."""
    if isinstance(value, str):
        return rules.text(value, "prompt")
    if not _is_token_ids(value):
        raise RefusedError("prompt must be a text, token ids, or a list of these")
    if len(value) > rules.limits.prompt_tokens:
        raise RefusedError(f"a prompt has {len(value)} tokens; {rules.limits.prompt_tokens} at most")
    return value


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and all(is_whole_number(token) for token in value)


def stops_of(given: Mapping[str, Any], rules: Rules) -> tuple[str, ...]:
    """Texts that end an answer.

    Raises:
        RefusedError: they are not texts, or too many.
    """
    value = given.get("stop", [])
    texts = [value] if isinstance(value, str) else value
    valid = isinstance(texts, list) and all(isinstance(one, str) and one for one in texts)
    if not valid or len(texts) > MOST_STOPS:
        raise RefusedError(f"stop={brief(value)} must be a text, or a list of {MOST_STOPS} at most")
    return tuple(rules.text(one, "stop") for one in texts)


def _flag(given: Any, name: str) -> bool:
    value = given.get(name, False) if isinstance(given, Mapping) else None
    if not isinstance(value, bool):
        raise RefusedError(f"{name}={brief(value)} must be true or false")
    return value
