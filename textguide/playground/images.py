"""Captions of drawn scenes and of images that a visitor brings."""

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
from ..guidance.spec import label
from ..serving.rules import RefusedError, Rules, only
from ..serving.turns import Attention
from ..support.errors import MissingExtraError
from .models import Models
from .write import PLAIN, Send

HOME = Path(__file__).parent / "assets" / "scenes"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


@lru_cache(maxsize=1)
def scenes() -> tuple[dict[str, Any], ...]:
    """The bundled scenes: a name and the bytes of a PNG file each."""
    return tuple({"name": path.stem, "data": path.read_bytes()} for path in sorted(HOME.glob("*.png")))


def caption(models: Models, values: Mapping[str, Any], rules: Rules) -> Callable[[Send], None]:
    """A run that captions an image: the events of :func:`.writing.write`.

    Args:
        values: ``scene`` (a bundled one) or ``image`` (a file as a data URL), ``guidance`` and ``options``.

    Raises:
        RefusedError: something in the request does not work; the message names it.
    """
    only(values, ("scene", "image", "guidance", "options"))
    guidance = rules.guidance(values.get("guidance"), "caption")
    options = rules.options(values.get("options") or {})
    image = picture_of(values, rules)

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
            stopping_criteria=[Attention(lambda: send("", None))],
            **options,
        )
        found = explanation.to_dict()
        send("end", {
            **found, "kind": "text", "model": "drawn-scenes", "prompt": "", "scorable": "captions are not scored here",
            "summary": "" if guidance is None else explanation.summary,
            "note": "" if guidance is None else explanation.note,
            "guidance": None if guidance is None else found["guidance"],
            "label": label(guidance),
        })  # fmt: skip

    return run


def picture_of(values: Mapping[str, Any], rules: Rules) -> Any:
    """The image that a request names or holds.

    Raises:
        RefusedError: there is none, or it cannot be read.
    """
    scene, image = values.get("scene"), values.get("image")
    if image is None:
        found = next((one["data"] for one in scenes() if one["name"] == scene), None)
        if found is None:
            raise RefusedError(f"scene={scene!r} is unknown; use one of {', '.join(one['name'] for one in scenes())}")
        data = found
    else:
        head, _, text = image.partition(",") if isinstance(image, str) else ("", "", "")
        if not head.startswith("data:image/") or not head.endswith(";base64"):
            raise RefusedError("image must be a file of an image; choose a PNG or JPEG file")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise RefusedError("image is damaged; choose another file") from None
    return opened(data, rules.limits.pixels)


def opened(data: bytes, most: int) -> Any:
    """An RGB image from the bytes of a file, as Pillow has it.

    Raises:
        RefusedError: it is no image, or a larger one than ``most`` pixels wide or high.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "captioning", "captions on the page") from error
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            if max(file.size) > most:
                raise RefusedError(f"the image has {file.width}×{file.height} pixels; scale it to {most} or fewer")
            file.load()
            return read_image(file.copy())
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, RefusedError):
            raise
        raise RefusedError(f"the file cannot be read as an image ({' '.join(str(error).split())[:120]})") from None
