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
from .markdown import markdown


def write_run(
    run: RunResult,
    folder: str | os.PathLike[str],
    *,
    samples: Iterable[Mapping[str, Any]] | None = None,
    plots: bool | None = None,
    svg: bool = False,
) -> Path:
    """Write the results folder. ``results.json`` is written last, so a folder that has this file is complete.

    Args:
        run: the run, which is analysed first.
        folder: created if it is missing. If it holds the same run, its files are written again.
        samples: requests and answers, one mapping per item, for ``samples.jsonl``; None: no such file.
        plots: draw the pictures; None: if matplotlib is installed.
        svg: also write the pictures as SVG.

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
    draw = drawing.available() if plots is None else plots
    pictures = drawing.save_run(run, target, svg) if draw else []
    write_text(target / REPORT, markdown(run, pictures))
    write_json(target / RESULTS, run_to_dict(run))
    return target


def read_run(folder: str | os.PathLike[str]) -> RunResult:
    """Read the run from a folder that :func:`write_run` wrote.

    Raises:
        FileNotFoundError: the folder does not have a finished run.
        ValueError: the folder was not written by textguide, or by a later version.
    """
    source = Path(folder)
    values = read_results(source)
    if values is None:
        raise FileNotFoundError(f"{source} does not have {RESULTS}; name the folder of a finished run")
    return run_from_dict(values, storage.load(source / ITEMS))
