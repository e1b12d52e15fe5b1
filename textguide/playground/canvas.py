"""Masked diffusion: a canvas that fills, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..diffusion import bundled
from ..diffusion.generation import decode, prepared, prepared_infill
from ..diffusion.picture import Picture
from ..guidance.spec import label
from ..serving.rules import RefusedError, Rules, only
from .models import Models
from .write import Send

ABOUT: dict[str, dict[str, Any]] = {
    "sudoku4": {
        "title": "4×4 sudoku", "prompt": "0300124300000431", "gen_length": 16, "columns": 4,
        "hint": "sixteen digits, row by row; 0 is an empty cell",
    },
    "sudoku9": {
        "title": "9×9 sudoku", "gen_length": None, "columns": 9, "empty": "0",
        "hint": "81 digits, row by row; 0 is an empty cell",
        "prompt": "530070000600195000098000060800060003400803001700020006060000280000419005000080079",
    },
    "molecules": {
        "title": "molecules as SMILES", "prompt": "CC(=O)O", "gen_length": 24, "columns": None,
        "hint": "a beginning in SMILES, or nothing",
    },
}  # fmt: skip
"""What the page says of the bundled models; ``empty`` is what a text has in place of masks, which are filled in."""
WHOLE = ("gen_length", "steps", "block_length", "corrector", "seed")
OPTIONS = (*WHOLE, "temperature", "threshold", "order", "positions")


def canvases() -> list[dict[str, Any]]:
    """The bundled models with an example each."""
    plain = {"prompt": "", "gen_length": 16, "columns": None, "hint": "a text in front of the canvas"}
    return [{"name": name, "title": name, **plain, **ABOUT.get(name, {})} for name in bundled()]


def empty_of(name: str) -> str | None:
    """What stands in a text of that model in place of a mask; None where it writes behind a prompt."""
    return ABOUT.get(name, {}).get("empty")


def infilling(options: Mapping[str, Any]) -> dict[str, Any]:
    """What of the options of a canvas is left where a text has its masks in it.

    Raises:
        RefusedError: it has blocks, which such a text has not.
    """
    if "block_length" in options:
        raise RefusedError("block_length is for canvases behind a prompt; leave it out")
    return {name: value for name, value in options.items() if name != "gen_length"}


def fill(models: Models, values: Mapping[str, Any], rules: Rules) -> Callable[[Send], None]:
    """A run that fills a canvas: events ``canvas`` (what it holds at first), ``filled`` for every step, and ``end``.

    Args:
        values: ``model`` (a bundled one), ``prompt``, ``guidance`` and ``options``.

    Raises:
        RefusedError: something in the request does not work; the message names it.
    """
    only(values, ("model", "prompt", "guidance", "options"))
    name, prompt = str(values.get("model")), rules.text(values.get("prompt", ""), "prompt")
    guidance = rules.guidance(values.get("guidance"), "diffusion")
    options, empty = _options(values.get("options") or {}, rules), empty_of(name)
    shape = options if empty is None else infilling(options)

    def run(send: Send) -> None:
        model, tokenizer = models.denoiser(name)
        if empty is None:
            sampler = prepared(model, tokenizer, prompt, guidance=guidance, **shape)
        else:
            text = prompt.replace(empty, tokenizer.mask_token)
            sampler = prepared_infill(model, tokenizer, text, guidance=guidance, **shape)
        made, canvas = sampler.model, sampler.canvas
        picture = Picture.of(made, canvas)
        about = next(one for one in canvases() if one["name"] == name)
        head = {"kind": "canvas", "cells": picture.cells, "columns": about["columns"], "label": label(guidance)}
        send("canvas", head)
        cells, steps = [dict(cell) for cell in picture.cells], []
        for step in sampler.run():
            steps.append(picture.step(step))
            send("filled", steps[-1])
        summary = f"{sampler.effect}; {len(steps)} steps, {sampler.guide.passes} forward passes"
        text = decode(made, canvas, 0, empty is not None)
        send("end", {
            **head, "cells": cells, "steps": steps, "text": text, "summary": summary,
            "model": name, "guidance": None if guidance is None else guidance.to_dict(),
        })  # fmt: skip

    return run


def _options(values: Any, rules: Rules) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise RefusedError(f"options={values!r} must be an object")
    only(values, OPTIONS)
    found = {key: value for key, value in values.items() if value is not None}
    for key in WHOLE:
        if key in found and (isinstance(found[key], bool) or not isinstance(found[key], int)):
            raise RefusedError(f"{key}={found[key]!r} must be a whole number")
    length, most = found.setdefault("gen_length", 16), rules.limits.canvas
    if not 1 <= length <= most:
        raise RefusedError(f"gen_length={length} must lie between 1 and {most} on this server")
    if found.get("steps", 1) > 4 * most or found.get("corrector", 0) > most:
        raise RefusedError(f"steps and corrector may be {4 * most} and {most} at most on this server")
    return found
