"""A refusal in an engine's own process as one line where the engine was started, in place of two tracebacks.

Knows no vLLM but that its engine's process lets a ``SystemExit`` pass without a word.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "TEXTGUIDE_REFUSAL"
"""The environment variable with the file into which an engine's process writes why it does not start."""


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Around the start of an engine.

    Raises:
        ValueError: what :func:`refusing` found in a process of the engine's.
    """
    with tempfile.TemporaryDirectory(prefix="textguide-") as folder:
        path, before = Path(folder) / "refusal", os.environ.get(VARIABLE)
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
    """Around what may refuse to start, wherever it runs: a ``ValueError`` in a process of its own is told elsewhere."""
    try:
        yield
    except ValueError as error:
        path = os.environ.get(VARIABLE)
        if path is None or multiprocessing.parent_process() is None or not Path(path).parent.is_dir():
            raise
        Path(path).write_text(str(error), encoding="utf-8")
        raise SystemExit(1) from None
