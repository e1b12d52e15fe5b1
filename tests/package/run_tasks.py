"""Runs the scripts of this folder in one process, each in an empty folder: ``python run_tasks.py REPORT.json``.

The scripts are what a user of the installed package writes. This file therefore imports nothing else of the repository.
One process saves a minute, since importing torch and transformers takes seconds.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any


def main() -> None:
    import torch

    import textguide
    from textguide.support import errors

    unexpected = (errors.EmptyTextWarning, errors.GuidanceHadNoEffectWarning, errors.NoParticleLeftWarning)
    report: dict[str, Any] = {"package": textguide.__file__, "tasks": {}}
    for script in sorted(Path(__file__).parent.glob("[a-z]_*.py")):
        torch.manual_seed(0)
        output = io.StringIO()
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(output), warnings.catch_warnings():
            for category in unexpected:
                warnings.simplefilter("error", category)
            os.chdir(folder)
            state, reason = run(script)
            os.chdir(Path(__file__).parent)
        seconds = round(time.perf_counter() - started, 1)
        report["tasks"][script.stem] = {
            "state": state, "reason": reason, "output": output.getvalue(), "seconds": seconds,
        }  # fmt: skip
    Path(sys.argv[1]).write_text(json.dumps(report, indent=1), encoding="utf-8")


def run(script: Path) -> tuple[str, str]:
    """How the script ended: ``passed``, ``skipped`` with the missing package, or ``failed`` with the traceback."""
    from textguide.support.errors import MissingExtraError

    try:
        runpy.run_path(str(script), run_name="__main__")
    except MissingExtraError as error:
        return "skipped", str(error)
    except ModuleNotFoundError as error:
        # A package that the task itself imports, such as fastapi.
        if str(error.name).startswith("textguide"):
            return "failed", traceback.format_exc()
        return "skipped", str(error)
    except BaseException:
        return "failed", traceback.format_exc()
    return "passed", ""


if __name__ == "__main__":
    main()
