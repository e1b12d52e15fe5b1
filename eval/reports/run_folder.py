"""A finished run, written to its results folder and read from one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from textguide.support.files import json_bytes, plain, replacing, write_json, write_text

from ..results import storage
from ..results.folder import ITEMS, REPORT, RESULTS, SAMPLES, claim, read_results
from ..results.lm_eval_schema import run_from_dict, run_to_dict
from ..results.run import RunResult
from . import drawing
from . import plots as pictures_of
from .markdown import markdown


def write_run(
    run: RunResult,
    folder: str | os.PathLike[str],
    *,
    samples: Iterable[Mapping[str, Any]] | None = None,
    plots: bool | None = None,
    svg: bool = False,
) -> Path:
    """Write the results folder; ``results.json`` comes last, so a folder that has one is complete.

    Args:
        run: what was found; it is analysed.
        folder: where; made where it is missing. One that holds this run is written again.
        samples: what was asked and answered, one mapping an item, for ``samples.jsonl``.
        plots: draw the pictures. None: where matplotlib is installed.
        svg: also draw them as SVG.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds another run or other files of these names. Nothing is overwritten.
        MissingExtraError: ``plots`` is True and matplotlib is not installed. Nothing is written.
    """
    if plots:
        drawing.require()
    target = claim(folder, run.identity)
    run.analyse()
    storage.save(target / ITEMS, run.tasks)
    if samples is not None:
        with replacing(target / SAMPLES) as stream:
            for sample in samples:
                stream.write(json_bytes(plain(sample)) + b"\n")
    pictures = pictures_of.save_all(run, target, svg) if plots or (plots is None and drawing.available()) else []
    write_text(target / REPORT, markdown(run, pictures))
    write_json(target / RESULTS, run_to_dict(run))
    return target


def read_run(folder: str | os.PathLike[str]) -> RunResult:
    """The run that :func:`write_run` put into a folder.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: the folder is not one of textguide's, or of a later version.
    """
    source = Path(folder)
    values = read_results(source)
    if values is None:
        raise FileNotFoundError(f"{source} has no {RESULTS}; name the folder of a finished run")
    return run_from_dict(values, storage.load(source / ITEMS))
