"""``textguide completion``: a script that completes commands and options in a shell."""

from __future__ import annotations

import argparse
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")
EPILOG = """\
bash:  textguide completion bash > ~/.local/share/bash-completion/completions/textguide
zsh:   textguide completion zsh > "${fpath[1]}/_textguide"
tcsh:  textguide completion tcsh | sudo tee /etc/profile.d/textguide.completion.csh
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "completion", help="print a script for shell completion", description=__doc__, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
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
