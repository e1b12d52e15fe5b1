"""``textguide completion``."""

from __future__ import annotations

import argparse
from typing import Any

from .parser import add_command

SHELLS = ("bash", "zsh", "tcsh")


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "completion",
        description="Print a script that completes commands and options in a shell.",
        examples=(
            "completion bash > ~/.local/share/bash-completion/completions/textguide",
            'completion zsh > "${fpath[1]}/_textguide"',
            "completion tcsh | sudo tee /etc/profile.d/textguide.completion.csh",
        ),
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab
    except ImportError as error:
        from ..support.errors import MissingExtraError

        raise MissingExtraError("shtab", "completion", "textguide completion") from error
    from . import build_parser

    print(shtab.complete(build_parser(), arguments.shell))
    return 0
