"""A run as Python, as a line for the terminal and as a call of this server."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from ..guidance import Guidance, parts_of
from ..guidance.prompts import to_json
from ..serving.rules import RefusedError, Rules
from .canvas import empty_of, infilling
from .models import SMALL, Models, names_of_models

TASKS = {"write": "generate", "together": "generate", "diffuse": "diffusion", "caption": "caption"}
"""What the page calls a task, and where its guidance runs."""
_INDENT = "\n    "


def take_away(models: Models, values: Mapping[str, Any], rules: Rules) -> dict[str, str]:
    """``python``, ``curl`` and, where the command line has it, ``cli``.

    Args:
        values: ``task``, ``address`` (of this server, as the visitor reaches it) and ``request``, what the task is
            asked.

    Raises:
        RefusedError: the task is unknown, or its request does not work.
    """
    task, request = str(values.get("task")), values.get("request")
    if task not in TASKS or not isinstance(request, Mapping):
        raise RefusedError(f"task={task!r} must be one of {', '.join(TASKS)}, with its request")
    address = rules.text(values.get("address") or "http://localhost:7860/", "address")
    guidance = rules.guidance(request.get("guidance"), TASKS[task])
    given = {name: value for name, value in (request.get("options") or {}).items() if value is not None}
    made = {"curl": _curl(task, request, address)}
    if task in ("write", "together"):
        prompt = rules.prompt(request.get("prompt"))
        options = rules.options(given)
        made["python"] = _python(models, prompt, guidance, options, task == "together")
        made["cli"] = _cli(models, prompt, guidance, options, task == "together")
    elif task == "diffuse":
        name, prompt = str(request.get("model")), repr(request.get("prompt", ""))
        load, call = f"model, tokenizer = textguide.diffusion.load({name!r})", "generate"
        if (empty := empty_of(name)) is not None:
            prompt, call, given = f"{prompt}.replace({empty!r}, tokenizer.mask_token)", "infill", infilling(given)
        made["python"] = _lines(guidance, load, f"textguide.diffusion.{call}", ["model", "tokenizer", prompt], given)
    else:
        image = f"{request.get('scene') or 'image'}.png"
        made["python"] = _lines(
            guidance, 'model, processor = textguide.captioning.load("drawn-scenes")', "textguide.caption",
            ["model", "processor", repr(image)], rules.options(given),
        )  # fmt: skip
    return made


def as_python(guidance: Guidance) -> str:
    """The call that makes a guidance, with the fields that are not at their defaults."""
    if len(guidance.parts) > 1:
        return f"[{', '.join(as_python(part) for part in guidance.parts)}]"
    values, shown = guidance.to_dict(), []
    for field in fields(guidance):  # type: ignore[arg-type]
        if field.name not in values:  # left out of the JSON where it says nothing
            continue
        if field.default is MISSING or values[field.name] != to_json(field.default):
            shown.append(f"{field.name}={values[field.name]!r}")
    return f"{type(guidance).__name__}({', '.join(shown)})"


def _python(models: Models, prompt: Any, guidance: Guidance | None, options: dict[str, Any], together: bool) -> str:
    names = sorted(names_of_models(guidance))
    further = {name: SMALL.get(name, "MODEL") for name in names}
    load = f"model, tokenizer = textguide.load({models.name!r})"
    if further:
        loads = ", ".join(f"{name!r}: textguide.load({source!r})[0]" for name, source in further.items())
        load += f"\nmodels = {{{loads}}}"
    extra = {"models": "models"} if further else {}
    return _lines(guidance, load, "textguide.generate", ["model", "tokenizer", repr(prompt)], options, extra, together)


def _lines(
    guidance: Guidance | None, load: str, call: str, arguments: list[str], options: Mapping[str, Any],
    extra: Mapping[str, str] | None = None, together: bool = False,
) -> str:  # fmt: skip
    parts = list(parts_of(guidance))
    classes = ", ".join(sorted({type(part).__name__ for part in parts}))
    imports = "import textguide" + (f"\nfrom textguide.guidance import {classes}" if parts else "")
    given = [*arguments, *([f"guidance={as_python(guidance)}"] if guidance is not None else [])]
    given += [f"{name}={value}" for name, value in (extra or {}).items()]
    given += [f"{name}={value!r}" for name, value in options.items()]
    show = "print(out.texts[0])"
    if together:
        show = "for text, finished in zip(out.texts, out.finished):\n    print(bool(finished), repr(text))"
    inside = "".join(f"{_INDENT}{one}," for one in given)
    return f"{imports}\n\n{load}\nout = {call}({inside}\n)\n{show}\n"


def _cli(models: Models, prompt: Any, guidance: Guidance | None, options: dict[str, Any], together: bool) -> str:
    words = ["textguide", "generate", "--model", models.name]
    words += ["--scale", "1"] if guidance is None else ["--guidance", guidance.to_json()]
    for name in sorted(names_of_models(guidance)):
        words += ["--extra-model", f"{name}={SMALL.get(name, 'MODEL')}"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    if together:
        words.append("--all-particles")
    if isinstance(prompt, str) and "\n" not in prompt:
        return shlex.join([*words, "--", prompt])
    return f"printf '%s\\n' {shlex.quote(json.dumps(prompt, ensure_ascii=False))} | {shlex.join(words)}"


def _curl(task: str, request: Mapping[str, Any], address: str) -> str:
    data = json.dumps({name: value for name, value in request.items() if value is not None}, ensure_ascii=False)
    if len(data) > 20_000:
        data = "@request.json"
    where = f"{address.rstrip('/')}/api/{task}"
    return shlex.join(["curl", "-N", where, "-H", "Content-Type: application/json", "-d", data])
