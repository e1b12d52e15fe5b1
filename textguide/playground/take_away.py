"""A run as Python code, as a command for the terminal, and as a call of this server."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from ..guidance import Composed, Guidance
from ..guidance.prompts import to_json
from ..serving.errors import RefusedError
from ..serving.requests import model_names
from ..serving.rules import Rules
from .canvas import canvas_options, empty_character
from .models import SMALL, Models

TASKS = {"write": "generate", "together": "generate", "diffuse": "diffusion", "caption": "caption"}
"""The tasks of the page, and the place where the guidance of each runs."""
LONGEST_DATA = 20_000
_INDENT = "\n    "


def take_away(models: Models, values: Mapping[str, Any], rules: Rules) -> dict[str, str]:
    """``python``, ``curl`` and, if the command line has the task, ``cli``.

    Args:
        values: ``task``, ``address`` (of this server, as the visitor reaches it) and ``request`` (as the task receives
            it).

    Raises:
        RefusedError: the task is unknown, or its request does not work.
    """
    task = str(values.get("task"))
    request = values.get("request")
    if task not in TASKS or not isinstance(request, Mapping):
        raise RefusedError(f"task={task!r} must be one of {', '.join(TASKS)}, with its request")
    address = rules.text(values.get("address") or "http://localhost:7860/", "address")
    guidance = rules.guidance(request.get("guidance"), TASKS[task])
    made = {"curl": _curl(task, request, address)}
    if task == "diffuse":
        made["python"] = _python_of_canvas(request, guidance, rules)
    elif task == "caption":
        made["python"] = _python_of_caption(request, guidance, rules)
    else:
        prompt = rules.prompt(request.get("prompt"))
        options = rules.options(request.get("options") or {})
        made["python"] = _python(models, prompt, guidance, options, together=task == "together")
        made["cli"] = _cli(models, prompt, guidance, options, together=task == "together")
    return made


def as_python(guidance: Guidance) -> str:
    """The call that creates a guidance, with the fields that are not at their defaults."""
    if isinstance(guidance, Composed):
        return f"[{', '.join(as_python(part) for part in guidance.parts)}]"
    shown = ", ".join(f"{name}={value!r}" for name, value in _changed_fields(guidance).items())
    return f"{type(guidance).__name__}({shown})"


def as_json(guidance: Guidance) -> str:
    """The JSON of a guidance, with the fields that are not at their defaults."""
    if isinstance(guidance, Composed):
        parts = [{"method": part.name, **_changed_fields(part)} for part in guidance.parts]
        return json.dumps({"method": guidance.name, "parts": parts}, ensure_ascii=False)
    return json.dumps({"method": guidance.name, **_changed_fields(guidance)}, ensure_ascii=False)


def _changed_fields(guidance: Guidance) -> dict[str, Any]:
    """The fields of one method that are not at their defaults, as JSON values."""
    values = guidance.to_dict()
    changed = {}
    for field in fields(guidance):  # type: ignore[arg-type]
        if field.name not in values:  # to_dict leaves out fields that have no meaning for this value
            continue
        if field.default is MISSING or values[field.name] != to_json(field.default):
            changed[field.name] = values[field.name]
    return changed


def _python(models: Models, prompt: Any, guidance: Guidance | None, options: dict[str, Any], together: bool) -> str:
    names = sorted(model_names(guidance))
    further = {name: SMALL.get(name, "MODEL") for name in names}
    load = f"model, tokenizer = textguide.load({models.name!r})"
    if further:
        loads = ", ".join(f"{name!r}: textguide.load({source!r})[0]" for name, source in further.items())
        load += f"\nmodels = {{{loads}}}"
    arguments = ["model", "tokenizer", repr(prompt), *_guidance_argument(guidance)]
    arguments += ["models=models"] if further else []
    show = "print(out.texts[0])"
    if together:
        show = "for text, finished in zip(out.texts, out.finished):\n    print(bool(finished), repr(text))"
    return _script(guidance, load, "textguide.generate", [*arguments, *_keywords(options)], show)


def _python_of_canvas(request: Mapping[str, Any], guidance: Guidance | None, rules: Rules) -> str:
    name = str(request.get("model"))
    prompt = repr(request.get("prompt", ""))
    options = canvas_options(name, request.get("options") or {}, rules)
    function = "generate"
    empty = empty_character(name)
    if empty is not None:
        prompt = f"{prompt}.replace({empty!r}, tokenizer.mask_token)"
        function = "infill"
    load = f"model, tokenizer = textguide.diffusion.load({name!r})"
    arguments = ["model", "tokenizer", prompt, *_guidance_argument(guidance), *_keywords(options)]
    return _script(guidance, load, f"textguide.diffusion.{function}", arguments)


def _python_of_caption(request: Mapping[str, Any], guidance: Guidance | None, rules: Rules) -> str:
    image = f"{request.get('scene') or 'image'}.png"
    options = rules.options(request.get("options") or {})
    load = 'model, processor = textguide.captioning.load("drawn-scenes")'
    arguments = ["model", "processor", repr(image), *_guidance_argument(guidance), *_keywords(options)]
    return _script(guidance, load, "textguide.caption", arguments)


def _guidance_argument(guidance: Guidance | None) -> list[str]:
    return [] if guidance is None else [f"guidance={as_python(guidance)}"]


def _keywords(options: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value!r}" for name, value in options.items()]


def _script(
    guidance: Guidance | None, load: str, call: str, arguments: list[str], show: str = "print(out.texts[0])"
) -> str:
    imports = "import textguide"
    if guidance is not None:
        parts = guidance.parts if isinstance(guidance, Composed) else (guidance,)
        classes = ", ".join(sorted({type(part).__name__ for part in parts}))
        imports += f"\nfrom textguide.guidance import {classes}"
    inside = "".join(f"{_INDENT}{one}," for one in arguments)
    return f"{imports}\n\n{load}\nout = {call}({inside}\n)\n{show}\n"


def _cli(models: Models, prompt: Any, guidance: Guidance | None, options: dict[str, Any], together: bool) -> str:
    words = ["textguide", "generate", "--model", models.name]
    words += ["--scale", "1"] if guidance is None else ["--guidance", as_json(guidance)]
    for name in sorted(model_names(guidance)):
        words += ["--extra-model", f"{name}={SMALL.get(name, 'MODEL')}"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    if together:
        words.append("--all-particles")
    if isinstance(prompt, str) and "\n" not in prompt:
        return shlex.join([*words, "--", prompt])
    # A chat, or a text of several lines, is piped in as JSON.
    return f"printf '%s\\n' {shlex.quote(json.dumps(prompt, ensure_ascii=False))} | {shlex.join(words)}"


def _curl(task: str, request: Mapping[str, Any], address: str) -> str:
    data = json.dumps({name: value for name, value in request.items() if value is not None}, ensure_ascii=False)
    if len(data) > LONGEST_DATA:  # an image
        data = "@request.json"
    url = f"{address.rstrip('/')}/api/{task}"
    return shlex.join(["curl", "-N", url, "-H", "Content-Type: application/json", "-d", data])
