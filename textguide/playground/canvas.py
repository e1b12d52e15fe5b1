"""Masked diffusion: a canvas that is filled step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..diffusion import bundled
from ..diffusion.denoisers import denoiser
from ..diffusion.options import CanvasOptions
from ..diffusion.picture import Picture
from ..diffusion.run import CanvasRun
from ..guidance.spec import label
from ..serving.errors import RefusedError
from ..serving.rules import Rules
from ..serving.schema import refuse_unknown
from .models import Models
from .runs import Send

LENGTH = 16
"""Masks of a canvas if a request does not say how many."""
ABOUT: dict[str, dict[str, Any]] = {
    "sudoku4": {
        "title": "4×4 sudoku",
        "prompt": "0300124300000431",
        "max_new_tokens": 16,
        "columns": 4,
        "hint": "sixteen digits, row by row; 0 is an empty cell",
    },
    "sudoku9": {
        "title": "9×9 sudoku",
        "prompt": "530070000600195000098000060800060003400803001700020006060000280000419005000080079",
        "max_new_tokens": None,
        "columns": 9,
        "empty": "0",
        "hint": "81 digits, row by row; 0 is an empty cell",
    },
    "molecules": {
        "title": "molecules as SMILES",
        "prompt": "CC(=O)O",
        "max_new_tokens": 24,
        "columns": None,
        "hint": "the beginning of a SMILES string, or nothing",
    },
}
"""What the page states about the bundled models. In texts of a model with ``empty``, that character is a mask."""


def canvases() -> list[dict[str, Any]]:
    """The bundled models with an example each."""
    default = {"prompt": "", "max_new_tokens": LENGTH, "columns": None, "hint": "a text before the canvas"}
    return [{"name": name, "title": name, **default, **ABOUT.get(name, {})} for name in bundled()]


def empty_character(name: str) -> str | None:
    """The character that means a mask in texts of that model; None if the model writes after a prompt."""
    return ABOUT.get(name, {}).get("empty")


def canvas_options(name: str, values: Any, rules: Rules) -> dict[str, Any]:
    """The options of a canvas of the model ``name``, checked.

    Raises:
        RefusedError: one is malformed, beyond the limits, or does not apply to a text that contains its masks.
    """
    options = rules.canvas_options(values, CanvasOptions.request_fields())
    if empty_character(name) is None:
        options.setdefault("max_new_tokens", LENGTH)
        return options
    accepted = CanvasOptions.request_fields(infilling=True)
    options.pop("max_new_tokens", None)  # the text has as many masks as it has
    for option in options:
        if option not in accepted:
            raise RefusedError(f"{option} is for canvases after a prompt; leave it out")
    return options


def fill(models: Models, values: Mapping[str, Any], rules: Rules) -> Callable[[Send], None]:
    """A run that fills a canvas: the events ``canvas`` (the canvas at first), ``filled`` for every step, and ``end``.

    Args:
        values: ``model`` (a bundled one), ``prompt``, ``guidance`` and ``options``.

    Raises:
        RefusedError: something in the request does not work; the message names it.
    """
    refuse_unknown(values, ("model", "prompt", "guidance", "options"))
    name = str(values.get("model"))
    prompt = rules.text(values.get("prompt", ""), "prompt")
    guidance = rules.guidance(values.get("guidance"), "diffusion")
    options = canvas_options(name, values.get("options") or {}, rules)
    empty = empty_character(name)

    def run(send: Send) -> None:
        model, tokenizer = models.denoiser(name)
        reader = denoiser(model, tokenizer)
        if empty is None:
            canvas_run = CanvasRun.after_prompts(reader, prompt, guidance, None, CanvasOptions(**options))
        else:
            text = prompt.replace(empty, tokenizer.mask_token)
            canvas_run = CanvasRun.in_texts(reader, text, guidance, None, CanvasOptions(**options))
        sampler = canvas_run.sampler()
        picture = Picture.of(reader, sampler.canvas)
        columns = next(one["columns"] for one in canvases() if one["name"] == name)
        head = {"kind": "canvas", "cells": picture.cells, "columns": columns, "label": label(guidance)}
        send("canvas", head)
        cells = [dict(cell) for cell in picture.cells]
        steps = []
        for step in sampler.run():
            steps.append(picture.step(step))
            send("filled", steps[-1])
        result = canvas_run.finish(sampler)
        end = {
            **head,
            "cells": cells,
            "steps": steps,
            "text": result.texts[0],
            "problem": result.problems[0] if result.problems else None,
            "checked": bool(result.problems),
            "summary": f"{sampler.effect}; {len(steps)} steps, {sampler.guide.passes} forward passes",
            "model": name,
            "guidance": None if guidance is None else guidance.to_dict(),
        }
        send("end", end)

    return run
