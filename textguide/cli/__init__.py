"""The command ``textguide``."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

EXAMPLES = """\
examples:
  textguide generate "The dragon flew over Paris, France," --scale 1.5
  textguide explain  "The dragon flew over Paris, France," --html dragon.html
  textguide generate "The film was" --classifier sentiment --target positive
  textguide generate "Date: " --regex "[0-9]{4}-[0-9]{2}-[0-9]{2}" --max-new-tokens 14
  textguide playground --open               # write, see, fork and compare in the browser
  textguide methods apg                     # what a method does, and its fields
  textguide eval --tasks lambada_mini --scales 1,1.25,1.5,2
  textguide doctor                          # what is installed, and what is missing

`textguide COMMAND --help` has the options of a command.
"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, on standard error, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> Parser:
    """The parser of all commands; each command adds its own arguments."""
    from .. import __version__
    from . import (
        batch_command,
        caption_command,
        classifier_command,
        completion_command,
        distill_command,
        doctor_command,
        eval_command,
        explain_command,
        export_command,
        generate_command,
        lookahead_command,
        methods_command,
        playground_command,
        replicate_command,
        serve_command,
        steering_command,
        tune_command,
        value_command,
    )

    parser = Parser(
        prog="textguide",
        description="Steer language models while they decode.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"textguide {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    rooms = (
        generate_command, explain_command, caption_command, playground_command, eval_command, classifier_command,
        tune_command, replicate_command, batch_command,
        steering_command, value_command, lookahead_command, distill_command, methods_command, export_command,
        serve_command, doctor_command, completion_command,
    )  # fmt: skip
    for module in rooms:
        module.add(commands)
    commands.choices["completion"].set_defaults(whole=parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0: done. 1: a model could not be loaded or a file not be written. 2: a wrong argument, such as a name that leads to
    no model. 130: interrupted; what was finished has been printed or written.
    """
    from ..support.errors import MissingExtraError, ModelUnavailableError

    arguments = build_parser().parse_args(argv)
    quiet()
    try:
        run: Any = arguments.run
        code = int(run(arguments) or 0)
        sys.stdout.flush()  # here, where a reader that went away can still be told from an error
        return code
    except ValueError as error:
        return _fail(arguments.command, error, 2)
    except (ModelUnavailableError, MissingExtraError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader went away (`| head`): silence the flush at interpreter exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return _fail(arguments.command, error, 1)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        return _fail(arguments.command, MemoryError("the device ran out of memory; use a smaller --batch-size"), 1)
    except KeyboardInterrupt:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        print(f"\ntextguide {arguments.command}: interrupted{_how_to_go_on(arguments)}", file=sys.stderr)
        return 130


def _how_to_go_on(arguments: argparse.Namespace) -> str:
    if arguments.command == "batch":
        return f"; the same command goes on where it was, from {arguments.out}"
    if arguments.command == "replicate":
        return "; the same command goes on where it was"
    if arguments.command not in ("eval", "tune"):
        return ""
    if getattr(arguments, "output", None) is None:
        return "; nothing was kept (with --output FOLDER, the same command goes on where it was)"
    return f"; the same command goes on where it was, from {arguments.output}"


def quiet() -> None:
    """Keep the loading bars and notices of transformers off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.showwarning = lambda message, *_: print(f"textguide: warning: {message}", file=sys.stderr)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _fail(command: str, error: BaseException, code: int) -> int:
    message = " ".join(str(error).split())
    print(f"textguide {command}: {message}", file=sys.stderr)
    return code
