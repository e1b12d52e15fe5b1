"""Requests to a server of a masked diffusion model: OpenAI's fields, and those of a canvas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...guidance import Guidance
from ...guidance.composed import split
from ...guidance.particle_gibbs import ParticleGibbs
from ...guidance.spec import as_guidance
from ...serving.rules import RefusedError, Rules

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1, 1.0), "presence_penalty": (0, 0.0), "frequency_penalty": (0, 0.0), "logprobs": (False, 0),
    "top_logprobs": (0,), "echo": (False,), "best_of": (1,), "suffix": ("",), "logit_bias": ({},), "tools": ([],),
    "tool_choice": ("none", "auto"), "response_format": ({"type": "text"},), "min_tokens": (0,), "top_k": (0, -1),
}  # fmt: skip
"""OpenAI's fields that a canvas cannot honour, with the values at which there is nothing to honour."""
IGNORED = ("user", "store", "metadata", "stream_options")
CANVAS = (
    "steps", "block_length", "order", "sampler", "threshold", "positions", "corrector", "early_end", "constraint",
    "cache",
)  # fmt: skip
"""Fields of :func:`textguide.diffusion.generate` that a request may set."""
COMMON = ("model", "seed", "n", "stream", "stop", "temperature", "max_tokens", "guidance", *CANVAS)
STOPS = 4
"""Texts at which an answer may be cut off."""


@dataclass(frozen=True)
class CanvasRequest:
    """One request.

    Args:
        chat: it came to the chats.
        prompts: texts, token ids or chats, one a row; those of ``n`` answers follow each other.
        options: arguments of :func:`textguide.diffusion.generate` or ``infill``.
        guidance: None for plain decoding.
        stop: the answer ends in front of the first of these.
        stream: whether the canvas is sent step by step.
        usage: whether a stream ends with the numbers of tokens.
        infill: the prompts hold the masks themselves.
    """

    chat: bool
    prompts: tuple[Any, ...]
    options: dict[str, Any]
    guidance: Guidance | None
    stop: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False
    infill: bool = False


def request_of(values: Mapping[str, Any], rules: Rules, chat: bool) -> CanvasRequest:
    """The request that a body holds.

    Raises:
        RefusedError: something in it is malformed, beyond the limits, or cannot be honoured; the message names it.
    """
    own = ("messages", "max_completion_tokens") if chat else ("prompt", "infill")
    for name, value in values.items():
        if name in NEUTRAL:
            if value is not None and value not in NEUTRAL[name]:
                raise RefusedError(f"{name}={value!r} cannot be honoured on a canvas of masks; leave it out")
        elif name not in (*COMMON, *IGNORED, *own):
            raise RefusedError(
                f"{name!r} is no field of this server; known are {', '.join((*own, *COMMON, *NEUTRAL, *IGNORED))}"
            )
    given = {name: value for name, value in values.items() if value is not None}
    stream, infill = (_flag(given, name) for name in ("stream", "infill"))
    guidance = guidance_of(given.get("guidance"), rules)
    if stream and infill:
        raise RefusedError("stream=true is for what is written behind a prompt; leave it out with infill")
    if stream and isinstance(split(guidance).canvas, ParticleGibbs):
        raise RefusedError("stream=true shows one canvas, and particle-gibbs moves several; leave one of them out")
    prompts = prompts_of(given, rules, chat)
    count = _whole(given, "n", 1, rules.limits.particles, 1)
    if count * len(prompts) > rules.limits.rows:
        raise RefusedError(
            f"{len(prompts)} prompts times n={count} are more than the {rules.limits.rows} rows that a request may have"
        )
    options = options_of(given, rules)
    if infill:
        for name in ("max_tokens", "block_length", "early_end"):
            if name in given:
                raise RefusedError(f"{name} is for what is written behind a prompt; leave it out with infill")
        options = {name: value for name, value in options.items() if name not in ("gen_length",)}
    return CanvasRequest(
        chat, tuple(prompt for prompt in prompts for _ in range(count)), options, guidance, stops_of(given, rules),
        stream, _flag(given.get("stream_options") or {}, "include_usage"), infill,
    )  # fmt: skip


def guidance_of(value: Any, rules: Rules) -> Guidance | None:
    """A guidance as JSON, or as the line of text that the command line takes.

    Raises:
        RefusedError: it is malformed, names something of this machine, costs too much, or does not run on a canvas.
    """
    if isinstance(value, str):
        text = rules.text(value, "guidance")
        if ".json" in text or "python:" in text:
            raise RefusedError(f"guidance={value!r} names a file or code; send the guidance itself")
        try:
            found = as_guidance(text)
        except (ValueError, TypeError) as error:
            raise RefusedError(str(error)) from None
        value = None if found is None else found.to_dict()
    return rules.guidance(value, "diffusion")


def prompts_of(given: Mapping[str, Any], rules: Rules, chat: bool) -> list[Any]:
    """The prompts, one a row.

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
    if isinstance(value, str):
        return [rules.text(value, "prompt")]
    if not isinstance(value, list) or not value:
        raise RefusedError("prompt must be a text, token ids, or a list of these")
    if all(isinstance(one, int) and not isinstance(one, bool) for one in value):
        value = [value]
    rows: list[Any] = []
    for one in value:
        if isinstance(one, str):
            rows.append(rules.text(one, "prompt"))
        elif isinstance(one, list) and all(isinstance(t, int) and not isinstance(t, bool) for t in one):
            if len(one) > rules.limits.prompt_tokens:
                raise RefusedError(f"a prompt has {len(one)} tokens; {rules.limits.prompt_tokens} at most")
            rows.append(one)
        else:
            raise RefusedError("prompt must be a text, token ids, or a list of these")
    return rows


def options_of(given: Mapping[str, Any], rules: Rules) -> dict[str, Any]:
    """How the canvas is filled. Types and bounds that ``generate`` checks itself are left to it.

    Raises:
        RefusedError: a number is malformed or beyond the limits.
    """
    most = rules.limits.canvas
    found: dict[str, Any] = {name: given[name] for name in CANVAS if name in given}
    name = "max_completion_tokens" if "max_completion_tokens" in given else "max_tokens"
    found["gen_length"] = _whole(given, name, 1, most, min(64, most))
    if "steps" in found:
        _whole(found, "steps", 1, 4 * most, 1)
    if "corrector" in found:
        _whole(found, "corrector", 0, most, 0)
    if "constraint" in found:
        rules.constraint(found["constraint"])
    for name in ("order", "sampler", "positions"):
        if not isinstance(found.get(name, ""), str):
            raise RefusedError(f"{name}={found[name]!r} must be a text")
    if not isinstance(found.get("cache", False), (bool, str)):
        raise RefusedError(f"cache={found['cache']!r} must be true, false or a text such as delayed:refresh=4")
    temperature = given.get("temperature", 0.0)
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 <= temperature <= 100:
        raise RefusedError(f"temperature={temperature!r} must be a number between 0 and 100")
    found["temperature"] = temperature
    if "seed" in given:
        found["seed"] = _whole(given, "seed", -(2**63), 2**63 - 1, 0)
    return found


def stops_of(given: Mapping[str, Any], rules: Rules) -> tuple[str, ...]:
    """Texts that end an answer.

    Raises:
        RefusedError: they are no texts, or too many.
    """
    value = given.get("stop", [])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > STOPS or not all(isinstance(one, str) and one for one in texts):
        raise RefusedError(f"stop={value!r} must be a text, or a list of {STOPS} at most")
    return tuple(rules.text(one, "stop") for one in texts)


def cut(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """``text`` in front of the first of ``stops``, and whether there was one."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _flag(given: Any, name: str) -> bool:
    value = given.get(name, False) if isinstance(given, Mapping) else None
    if not isinstance(value, bool):
        raise RefusedError(f"{name}={value!r} must be true or false")
    return value


def _whole(given: Mapping[str, Any], name: str, least: int, most: int, default: int) -> int:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise RefusedError(f"{name}={value!r} must be a whole number between {least} and {most}")
    return value
