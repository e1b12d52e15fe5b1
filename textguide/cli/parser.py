"""The parser of the commands: errors on one line that suggest the nearest name, and help that ends with examples."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

COMMANDS = {
    "generate": "continue prompts under guidance",
    "explain": "show which tokens guidance raised and lowered at each step",
    "caption": "caption images under guidance",
    "playground": "try guidance in a browser",
    "eval": "score guided models on tasks, or compare finished runs",
    "classifier": "train a classifier of texts, or classify texts",
    "tune": "choose scale, schedule and window on one half of a task, and report on the other half",
    "replicate": "test registered claims of papers, with a verdict by rule",
    "batch": "continue or score the rows of files, with many replicas of a model",
    "steering": "train a steering vector",
    "prior": "train or export a token prior",
    "value": "train a value head on texts that a model writes",
    "lookahead": "train a lookahead for constraints",
    "distill": "train an adapter that replaces a guidance",
    "methods": "list the guidance methods, or describe one",
    "export-generate": "write a method as a folder that transformers' generate loads",
    "serve": "serve a model over HTTP, with guidance",
    "doctor": "show versions, devices, extras and caches, and what is missing",
    "completion": "print a script for shell completion",
}
"""The commands and what they do, in the order of the help page. Each has a module ``NAME_command`` in this folder."""


class Formatter(argparse.HelpFormatter):
    """Wraps paragraphs of one line; paragraphs of several lines, such as examples, are printed as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = []
        for paragraph in text.strip().split("\n\n"):
            is_laid_out = "\n" in paragraph
            paragraphs.append(paragraph if is_laid_out else super()._fill_text(paragraph, width, indent))
        return "\n\n".join(paragraphs)


class Parser(argparse.ArgumentParser):
    """A parser that reports errors on one line of standard error, with exit code 2 and a suggestion."""

    _words: Sequence[str] = ()
    """The arguments that are being parsed, for suggestions."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        # The parser of the innermost command wins; its options name the arguments in error messages.
        self.set_defaults(parser=self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse ``args``; unknown arguments are an error of this parser.

        argparse would pass them on to the parser of all commands, which does not know the options of this one.
        """
        self._words = sys.argv[1:] if args is None else list(args)
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        """Print ``message`` and exit with code 2."""
        if message.startswith(("unrecognized arguments", "the following arguments are required")):
            message += self._suggestions()
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        suggestion = _nearest(str(value), names)
        if suggestion:
            remedy = f"did you mean {suggestion!r}?"
        else:
            remedy = f"use one of {', '.join(names)}"
        if isinstance(action, argparse._SubParsersAction):
            self.error(f"{value!r} is not a command; {remedy}")
        raise argparse.ArgumentError(action, f"{value!r} is not a choice; {remedy}")

    def _suggestions(self) -> str:
        """The nearest option for each unknown one among the arguments."""
        suggestions = []
        for word in self._words:
            flag = word.partition("=")[0]
            is_known = any(option.startswith(flag) for option in self._option_string_actions)
            if not flag.startswith("--") or is_known:
                continue
            nearest = _nearest(flag, self._option_string_actions)
            if nearest:
                suggestions.append(f"{nearest} instead of {flag}")
        return f"; did you mean {', '.join(suggestions)}?" if suggestions else ""


def add_command(commands: Any, name: str, description: str, examples: Sequence[str]) -> Parser:
    """Add the parser of a command.

    Args:
        commands: the object that ``add_subparsers`` returned.
        name: name of the command.
        description: paragraphs at the top of its help page.
        examples: command lines at the end of its help page, after the word ``textguide``.
    """
    lines = "\n".join(f"  textguide {example}" for example in examples)
    parser: Parser = commands.add_parser(
        name, help=COMMANDS[name], description=description, epilog=f"examples:\n{lines}", formatter_class=Formatter
    )
    return parser


def in_options(message: str, parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """``message`` with options instead of argument names: ``--batch-size=0`` for ``batch_size=0``.

    Only options that were given are named, since other values come from the code and not from the user.

    Args:
        message: an error that names arguments as ``name=value``.
        parser: the parser of the command.
        arguments: the parsed arguments; ``flags`` has options whose name is not the argument's.
    """
    given: dict[str, str] = {}
    for action in parser._actions:
        if action.option_strings and getattr(arguments, action.dest, action.default) != action.default:
            given.setdefault(action.dest, action.option_strings[0])
    renamed = getattr(arguments, "flags", {})
    flags = {name: flag for name, flag in renamed.items() if flag in given.values()} | given
    # Not after a colon, comma or quote: there it is a field of a guidance that the message quotes.
    return re.sub(r"(?<![\w.:,'\"-])([a-z_]\w*)=", lambda match: f"{flags.get(match[1], match[1])}=", message)


def _nearest(name: str, known: Any) -> str | None:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return close[0] if close else None
