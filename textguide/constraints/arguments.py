"""Arguments that are given as text or as a file."""

from __future__ import annotations

from pathlib import Path


def read_text(name: str, path: Path) -> str:
    """The text of a file, for the argument ``name``.

    Raises:
        ValueError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{name}={str(path)!r} is not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{name}={str(path)!r} cannot be read ({error.strerror}); check the path") from None


def shortened(text: str) -> str:
    """``text`` in one short line, for messages."""
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}…"
