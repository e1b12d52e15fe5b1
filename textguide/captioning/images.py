"""Reads images, converts them to RGB and checks them; adds noise to images."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..support.errors import MissingExtraError

NOISE = 0.9
"""Standard deviation of the noise; that of the image is scaled by √(1 − 0.9²)."""
LARGEST = 178_956_970
"""The largest number of pixels. Larger images may be an attempt to exhaust the memory; the limit is Pillow's."""


def read_image(image: Any, name: str = "image") -> Any:
    """``image`` as an RGB image of Pillow.

    Palettes, grey, CMYK and 16-bit images are converted; transparent parts become white. Photographs are rotated
    according to their EXIF data.

    Args:
        image: a path, an image of Pillow, or an array (H, W), (H, W, 3) or (H, W, 4) of bytes.
        name: its name in errors.

    Raises:
        ValueError: it cannot be read, or is not an image; the message names the reason.
    """
    pillow, operations = _pillow()
    if image is None:
        raise ValueError(f"{name} is None; every row needs an image (textguide.generate continues text without one)")
    opened: Any = image
    if isinstance(image, (str, Path)):
        try:
            with pillow.open(image) as file:
                if file.width * file.height > LARGEST:
                    raise ValueError(f"{file.width}×{file.height} pixels are too many; scale it down")
                file.load()
                opened = file.copy()
        except (OSError, ValueError, SyntaxError, *pillow.bombs) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise ValueError(f"{name}={str(image)!r} cannot be read as an image ({reason})") from error
    elif not isinstance(image, pillow.Image):
        try:
            opened = pillow.fromarray(_array(image))
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{name} is a {type(image).__name__} and not an image; pass a path, an image of Pillow, or an array of "
                "bytes (height, width, 3)"
            ) from error
    try:
        opened = operations.exif_transpose(opened)
        if opened.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
            opened = _scaled(opened)
        if "A" in opened.getbands() or "transparency" in opened.info:
            ground = pillow.new("RGBA", opened.size, (255, 255, 255, 255))
            opened = pillow.alpha_composite(ground, opened.convert("RGBA"))
        return opened.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{name} cannot be read as an image ({' '.join(str(error).split())})") from error


def read_images(images: Any) -> list[Any]:
    """Read one image or several with :func:`read_image`.

    Raises:
        ValueError: there are no images, or one cannot be read; the message names it.
    """
    pillow, _ = _pillow()
    single = isinstance(images, (str, Path, pillow.Image)) or (hasattr(images, "ndim") and images.ndim in (2, 3))
    rows: Sequence[Any] = [images] if single else list(images)
    if not rows:
        raise ValueError("images is empty; pass at least one image")
    return [read_image(image, f"images[{number}]") for number, image in enumerate(rows)]


def noised(pixels: Tensor, share: float = NOISE) -> Tensor:
    """``pixels`` (R, …) of R images with noise: √(1 − s²) x + s ε.

    The seed of ε is a checksum of the image, so that an image gets the same noise in every batch.
    """
    rows = []
    for row in pixels:
        flat = row.detach().to("cpu", torch.float32).contiguous()
        generator = torch.Generator().manual_seed(zlib.crc32(flat.numpy().tobytes()))
        noise = torch.randn(flat.shape, generator=generator).to(pixels.device, pixels.dtype)
        rows.append((1 - share**2) ** 0.5 * row + share * noise)
    return torch.stack(rows)


def _array(image: Any) -> Any:
    import numpy as np

    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.dtype != np.uint8:
        raise ValueError(f"values of type {array.dtype}")
    return array


def _scaled(image: Any) -> Any:
    """A grey image of more than 8 bits (or of floats), scaled so that its values range from 0 to 255."""
    import numpy as np

    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    grey = np.zeros_like(values) if high <= low else (values - low) / (high - low) * 255
    return _pillow()[0].fromarray(grey.astype(np.uint8))


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError("pillow", "captioning", "reading images") from error
    return _Pillow(Image), ImageOps


class _Pillow:
    """The parts of Pillow that this file uses. ``PIL.Image`` is a module, and also a class in that module."""

    def __init__(self, module: Any) -> None:
        self.Image = module.Image
        self.open = module.open
        self.new = module.new
        self.fromarray = module.fromarray
        self.alpha_composite = module.alpha_composite
        self.bombs = (module.DecompressionBombError, module.DecompressionBombWarning)
