"""One line, instead of two tracebacks, if an engine's own process refuses to start.

Knows no vLLM, except that its engine process lets a ``SystemExit`` pass silently.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "TEXTGUIDE_REFUSAL"
"""The environment variable with the path of the file into which an engine's process writes why it does not start."""


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Use it around the start of an engine.

    Raises:
        ValueError: the one that :func:`refusing` met in a process of the engine.
    """
    with tempfile.TemporaryDirectory(prefix="textguide-") as folder:
        path = Path(folder) / "refusal"
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = str(path)
        try:
            yield
        except Exception:
            if path.exists():
                raise ValueError(path.read_text(encoding="utf-8")) from None
            raise
        finally:
            if before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = before


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Use it around checks at start: in another process, a ``ValueError`` reaches :func:`starting` by a file."""
    try:
        yield
    except ValueError as error:
        path = os.environ.get(VARIABLE)
        if path is None or multiprocessing.parent_process() is None or not Path(path).parent.is_dir():
            raise
        Path(path).write_text(str(error), encoding="utf-8")
        raise SystemExit(1) from None
