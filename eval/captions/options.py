"""Options of a captioning run; importing them does not load torch, so that the command line can describe them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from textguide.support.options import option


@dataclass(frozen=True)
class CaptioningOptions:
    """How captions are made and judged.

    Args:
        unconditional: see :func:`textguide.caption`.
        prompt: a text for every picture; None: the model's default.
        max_new_tokens: largest number of tokens of a caption.
        batch_size: number of pictures that are captioned together.
        limit: number of pictures; None: all.
        seed: seed of sampling and the bootstrap.
        generation: further options of transformers' ``generate``, such as a temperature.
        contact_sheet: number of pictures in ``captions.html``; 0: there is no such file.
        java: compute METEOR and SPICE, if Java and their files are installed.
    """

    unconditional: str = field(
        default="blank",
        metadata=option("input of the unconditional branch: blank, text, noise or the file of an image"),
    )
    prompt: str | None = field(
        default=None, metadata=option("a text for every image, with the model's placeholder for the image")
    )
    max_new_tokens: int = field(default=40, metadata=option("largest number of tokens of a caption"))
    batch_size: int = 16
    limit: int | None = None
    seed: int = 0
    generation: Mapping[str, Any] | None = None
    contact_sheet: int = 24
    java: bool = True
