"""The command ``textguide``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Collection, Sequence
from typing import Any

from .parser import COMMANDS, Formatter, Parser, in_options

WITHOUT_MODEL = ("doctor", "methods", "completion")
"""Commands that need no model, and start without importing transformers."""
EXAMPLES = """\
examples:
  textguide generate "The dragon flew over Paris, France," --scale 1.5
  textguide explain  "The dragon flew over Paris, France," --html dragon.html
  textguide generate "The film was" --classifier sentiment --target positive
  textguide generate "Date: " --regex "[0-9]{4}-[0-9]{2}-[0-9]{2}" --max-new-tokens 14
  textguide playground --open               # write, explain and compare in the browser
  textguide methods apg                     # what a method does, and its fields
  textguide eval --tasks lambada_mini --scales 1,1.25,1.5,2
  textguide doctor                          # what is installed, and what is missing

"textguide COMMAND --help" lists the options of a command.
"""


def build_parser(chosen: Collection[str] = tuple(COMMANDS)) -> Parser:
    """Build the parser of all commands.

    Args:
        chosen: commands whose arguments are added. The others are only listed, since the modules of some commands
            import torch, which takes seconds.
    """
    from ..support import __version__

    parser = Parser(
        prog="textguide",
        description="Steer language models while they generate.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    parser.add_argument("--version", action="version", version=f"textguide {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name in COMMANDS:
        if name in chosen:
            module = name.partition("-")[0]
            importlib.import_module(f".{module}_command", __name__).add(commands)
        else:
            commands.add_parser(name, help=COMMANDS[name])
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code. 0: the command is done. 1: a model could not be loaded or a file could not be written. 2: an
        argument is wrong, such as the name of a model that does not exist. 130: the command was interrupted; finished
        results have been printed or written.
    """
    from ..support.errors import MissingExtraError, ModelUnavailableError

    words = sys.argv[1:] if argv is None else list(argv)
    command = [word for word in words if not word.startswith("-")][:1]
    arguments = build_parser(command).parse_args(words)
    quiet(loads_models=arguments.command not in WITHOUT_MODEL)
    try:
        run: Any = arguments.run
        code = int(run(arguments) or 0)
        sys.stdout.flush()  # here a closed pipe can still be handled, at interpreter exit it cannot
        return code
    except ValueError as error:
        return _fail(arguments, error, 2)
    except (ModelUnavailableError, MissingExtraError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader is gone (`| head`): silence the flush at interpreter exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return _fail(arguments, error, 1)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        return _fail(arguments, MemoryError("the device ran out of memory; use a smaller --batch-size"), 1)
    except KeyboardInterrupt:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        print(f"\ntextguide {arguments.command}: interrupted{_resuming(arguments)}", file=sys.stderr)
        return 130


def _resuming(arguments: argparse.Namespace) -> str:
    """How an interrupted command is resumed."""
    if arguments.command == "batch":
        return f"; run the same command again to resume from {arguments.out}"
    if arguments.command == "replicate":
        return "; run the same command again to resume"
    if arguments.command not in ("eval", "tune"):
        return ""
    if arguments.output is None:
        return "; nothing was saved (with --output FOLDER, the same command resumes)"
    return f"; run the same command again to resume from {arguments.output}"


def quiet(loads_models: bool = True) -> None:
    """Keep progress bars and notices of libraries off the terminal, and print warnings on one line.

    Args:
        loads_models: whether transformers will be used; importing it takes seconds.
    """
    warnings.showwarning = lambda message, *_: print(f"textguide: warning: {message}", file=sys.stderr)
    if not loads_models:
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _fail(arguments: argparse.Namespace, error: BaseException, code: int) -> int:
    message = in_options(" ".join(str(error).split()), arguments.parser, arguments)
    print(f"textguide {arguments.command}: {message}", file=sys.stderr)
    return code
