"""What the command line answers without running a command: help, and suggestions for misspelled names."""

from __future__ import annotations

import subprocess
import sys

import pytest

from textguide import cli

# With None in sys.modules, importing the package raises ImportError.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from textguide.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"], ["generat"]])
def test_neither_torch_nor_transformers_is_imported(arguments: list[str]) -> None:
    finished = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True)
    assert "Error" not in finished.stderr
    assert finished.returncode == (2 if arguments == ["generat"] else 0)


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["genrate"], "'genrate' is not a command; did you mean 'generate'?"),
        (["paint-it"], "use one of generate, explain"),
        (["generate", "x", "--max-token", "3"], "did you mean --max-new-tokens instead of --max-token?"),
        (["generate", "x", "--tempratur=1"], "did you mean --temperature instead of --tempratur?"),
        (["generate", "x", "--sampler", "carz"], "did you mean 'cars'?"),
        (["classifier", "trian"], "did you mean 'train'?"),
    ],
)
def test_misspelled_names(capsys: pytest.CaptureFixture[str], arguments: list[str], suggestion: str) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert suggestion in line


def test_every_command_is_on_the_help_page() -> None:
    page = cli.build_parser(()).format_help()
    for name, action in cli.build_parser()._subparsers._group_actions[0].choices.items():  # type: ignore[union-attr]
        assert f"  {name}" in page
        assert action.format_help()
