"""The results folder: its files, and the run that it belongs to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textguide.support import files
from textguide.support.files import plain

from .journal import JOURNAL, check_identity, read_journal

FORMAT = 1
RESULTS = "results.json"
REPORT = "report.md"
ITEMS = "items.npz"
SAMPLES = "samples.jsonl"


def claim(folder: str | os.PathLike[str], identity: Mapping[str, Any]) -> Path:
    """Create the folder if it is missing, and check that it is free or belongs to the same run.

    Call it before the work begins, so that a wrong ``--output`` is refused immediately.

    Args:
        folder: the results folder.
        identity: what two runs must share to be the same run.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds another run, or files that a run would overwrite.
        OSError: nothing can be written there.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ValueError(f"output={str(target)!r} is a file; name a folder")
    files.folder(target, "output")
    values = read_results(target)
    if values is not None:
        check_identity(target, values["textguide"]["identity"], plain(identity))
    elif (target / JOURNAL).exists():
        # A journal whose header is incomplete does not belong to any run yet; Journal.open handles it.
        if b"\n" in (target / JOURNAL).read_bytes():
            check_identity(target, read_journal(target / JOURNAL)[0], plain(identity))
    else:
        others = [name for name in (REPORT, ITEMS, SAMPLES) if (target / name).exists()]
        if others:
            raise ValueError(f"{target} holds {', '.join(others)} and no run of textguide; choose another --output")
    target.mkdir(parents=True, exist_ok=True)
    return target


def read_results(folder: Path) -> dict[str, Any] | None:
    """The content of ``results.json``; None if there is no such file.

    Raises:
        ValueError: the file was not written by textguide, or by a version with another format.
    """
    file = folder / RESULTS
    if not file.exists():
        return None
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        file_format = values["textguide"]["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} was not written by textguide; name another folder") from error
    if file_format != FORMAT:
        raise ValueError(f"{file} has format {file_format!r} and this version of textguide reads {FORMAT}")
    return values
