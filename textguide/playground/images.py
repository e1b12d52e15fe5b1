"""Captions of drawn scenes and of images that a visitor uploads."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..captioning.images import read_image
from ..explanation.explaining import explain
from ..serving.errors import RefusedError
from ..serving.rules import Rules
from ..serving.schema import refuse_unknown
from ..support.errors import MissingExtraError
from .models import Models
from .runs import Send, let_others_run
from .write import PLAIN, explained

HOME = Path(__file__).parent / "assets" / "scenes"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


@lru_cache(maxsize=1)
def scenes() -> tuple[dict[str, Any], ...]:
    """The bundled scenes: the name of each and the bytes of its PNG file."""
    return tuple({"name": path.stem, "data": path.read_bytes()} for path in sorted(HOME.glob("*.png")))


def caption(models: Models, values: Mapping[str, Any], rules: Rules) -> Callable[[Send], None]:
    """A run that captions an image, with the events of :func:`textguide.playground.write.write`.

    Args:
        values: ``scene`` (a bundled one) or ``image`` (a file as a data URL), ``guidance`` and ``options``.

    Raises:
        RefusedError: something in the request does not work; the message names it.
    """
    refuse_unknown(values, ("scene", "image", "guidance", "options"))
    guidance = rules.guidance(values.get("guidance"), "caption")
    options = rules.options(values.get("options") or {})
    image = image_of(values, rules)

    def run(send: Send) -> None:
        model, processor = models.captioner()
        explanation = explain(
            model,
            processor,
            None,
            PLAIN if guidance is None else guidance,
            images=image,
            models=models.further(guidance),
            progress=lambda step: send("step", step.to_dict()),
            stopping_criteria=let_others_run(send),
            **options,
        )
        end = {
            **explained(explanation, guidance),
            "model": "drawn-scenes",
            "prompt": "",
            "scorable": "captions cannot be scored here",
        }
        send("end", end)

    return run


def image_of(values: Mapping[str, Any], rules: Rules) -> Any:
    """The image that a request names or contains.

    Raises:
        RefusedError: there is none, or it cannot be read.
    """
    scene = values.get("scene")
    image = values.get("image")
    if image is None:
        data = next((one["data"] for one in scenes() if one["name"] == scene), None)
        if data is None:
            raise RefusedError(f"scene={scene!r} is unknown; use one of {', '.join(one['name'] for one in scenes())}")
    else:
        head, _, text = image.partition(",") if isinstance(image, str) else ("", "", "")
        if not head.startswith("data:image/") or not head.endswith(";base64"):
            raise RefusedError("image must be a file of an image; choose a PNG or JPEG file")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise RefusedError("image is damaged; choose another file") from None
    return open_image(data, rules.limits.pixels)


def open_image(data: bytes, most: int) -> Any:
    """An RGB image of Pillow from the bytes of a file.

    Raises:
        RefusedError: it is not an image, or it is more than ``most`` pixels wide or high.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "captioning", "captioning on the page") from error
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            # Checked before the pixels are decoded.
            if max(file.size) > most:
                raise RefusedError(f"the image has {file.width}×{file.height} pixels; scale it to {most} or fewer")
            file.load()
            return read_image(file.copy())
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, RefusedError):
            raise
        raise RefusedError(f"the file cannot be read as an image ({' '.join(str(error).split())[:120]})") from None
