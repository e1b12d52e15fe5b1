"""A model folder for the command line, and a way to run it that leaves no trace in the process."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import transformers

from textguide import cli

from ..tiny_folder import save


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert self.out == ""
        return lines[0]


Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("cli") / "tiny")


@pytest.fixture
def run(
    model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Run a command on the tiny model; ``stdin`` is what is piped in, None for a terminal."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    verbosity = transformers.utils.logging.get_verbosity()
    level = logging.getLogger("huggingface_hub").level

    def call(command: str, *arguments: str, stdin: str | None = None, model: str | None = None) -> Outcome:
        pipe = io.StringIO(stdin or "")
        pipe.isatty = lambda: stdin is None  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", pipe)
        folder = str(model_folder) if model is None else model
        # Only there the model has a place of its own.
        chosen = [folder, "--device", "cpu"] if command == "distill" else ["--model", folder, "--device", "cpu"]
        capsys.readouterr()
        try:
            code = cli.main([command, *arguments, *chosen])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    yield call
    transformers.utils.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(level)
