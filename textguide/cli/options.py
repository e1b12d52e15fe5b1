"""Options that several commands share, and the values that they describe."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine.speculation.value import DRAFTS
from ..support.columns import names_columns
from ..support.errors import MissingExtraError
from ..support.options import add_options
from . import constraint_options
from .signatures import flags_of, names_in, settings_of, values_of

DEVICE = settings_of(
    "models/loading.py",
    "load",
    "device dtype trust_remote_code",
    device={"help": "cpu, cuda, cuda:1… [a GPU if there is one]"},
    dtype={"help": "float32, bfloat16 or float16 [float32 on a CPU, otherwise that of the checkpoint]"},
    trust_remote_code={"help": "run code that comes with the checkpoint"},
)
SHARED = settings_of(
    "models/loading.py",
    "load",
    "device_map adapter adapter_scale",
    device_map={"help": "device map of accelerate, such as auto, for models larger than one device"},
    adapter={"help": "an adapter (PEFT) that is added to the weights", "metavar": "FOLDER"},
    adapter_scale={"help": "γ of an adapter from textguide distill [the one it was trained for]", "metavar": "γ"},
)
CFG_FIELDS = settings_of(
    "guidance/scaled.py",
    "Scaled Contrast",
    "scale negative_prompt negative_system schedule start stop min_scale max_scale",
    scale={"help": "γ; 1 turns guidance off [1.5, or 1 if a classifier or a constraint guides]", "default": None},
    negative_prompt={"help": "text to move away from [the last token of the prompt]"},
    schedule={
        "help": f"how γ changes: {', '.join(names_in('guidance/schedules.py', 'SCHEDULES'))}; NAME:NUMBER sets a "
        "parameter"
    },
    start={"name": "guidance_start"},
    stop={"name": "guidance_stop"},
)
CAIF_FIELDS = settings_of(
    "guidance/text_reweighting.py",
    "TextReweighting",
    "entropy_threshold every schedule",
    schedule={"name": "weight_schedule", "help": "how α changes, as for --schedule"},
)


def add_model(
    parser: argparse.ArgumentParser, default: str = "smollm2", known: str = "smollm2 (bundled), a GGUF file"
) -> None:
    """``--model`` and how it is loaded."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", default=default, help=f"{known}, a folder or a hub name [%(default)s]")
    add_options(group, DEVICE)
    add_options(group, SHARED)


def load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Load the model and tokenizer that :func:`add_model`'s arguments name."""
    from ..models.loading import load as load_model

    return load_model(arguments.model, **values_of(DEVICE, arguments), **values_of(SHARED, arguments))


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """A guidance of any method, the fields of classifier-free guidance, and classifiers that weigh the candidates."""
    group = parser.add_argument_group("any guidance")
    group.add_argument(
        "--guidance",
        metavar="METHOD",
        help="a method with its fields, such as apg:scale=2.0 or formula:'cond - 0.5*last', your own class as "
        "python:MODULE:CLASS, or a JSON file; textguide methods lists the methods; excludes the options of the next "
        "two groups",
    )
    add_extra_model(group)
    group = parser.add_argument_group("classifier-free guidance")
    add_options(group, CFG_FIELDS)
    group = parser.add_argument_group("guidance by a classifier (CAIF); the first three may be repeated together")
    group.add_argument(
        "--classifier",
        action="append",
        default=[],
        metavar="NAME",
        help="sentiment, profanity, a folder from textguide classifier train, gzip:FILE, hf:NAME…",
    )
    group.add_argument("--target", action="append", default=[], metavar="LABEL", help="class to steer towards")
    group.add_argument("--weight", action="append", default=[], type=float, metavar="α", help="below 0 steers away [5]")
    group.add_argument("--candidates", type=int, default=100, help="tokens scored per step; 0 scores all [%(default)s]")
    add_options(group, CAIF_FIELDS)
    group.add_argument("--classify-continuation", action="store_true", help="hide the prompt from the classifier")
    parser.set_defaults(flags={**flags_of(CAIF_FIELDS), **flags_of(CFG_FIELDS), "top_k": "--candidates"})


def add_extra_model(parser: Any) -> None:
    """``--extra-model``."""
    parser.add_argument(
        "--extra-model",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="another model, by the name that the guidance uses for it, such as amateur=smollm2-small; the folder of "
        "an adapter (PEFT) is added to --model; may be repeated",
    )


def extra_model_names(arguments: argparse.Namespace) -> dict[str, str]:
    """The models of ``--extra-model``, by the name that the guidance uses.

    Raises:
        ValueError: an argument is not NAME=MODEL.
    """
    names = {}
    for text in arguments.extra_model:
        name, _, source = text.partition("=")
        if not name or not source:
            raise ValueError(f"--extra-model {text!r} must be NAME=MODEL, such as amateur=FOLDER")
        names[name] = source
    return names


def extra_models(arguments: argparse.Namespace, model: Any = None) -> dict[str, Any] | None:
    """Load the models of ``--extra-model`` as ``--model`` is loaded, and adapters as adapters of ``model``.

    Returns:
        The models by name; None if there are none.
    """
    from ..models.adapters import load_further

    return load_further(model, extra_model_names(arguments), **values_of(DEVICE, arguments)) or None


def guidance(arguments: argparse.Namespace) -> Any:
    """The guidance that :func:`add_guidance`'s arguments describe.

    Raises:
        ValueError: options exclude each other, or a value is invalid.
    """
    from ..guidance import CFG, as_guidance
    from ..guidance.spec import parse

    fields = values_of(CFG_FIELDS, arguments)
    classifiers = _classifiers(arguments)
    if arguments.guidance is not None:
        for field in dataclasses.fields(CFG_FIELDS):
            if getattr(arguments, field.name) != field.default:
                flag = "--" + field.name.replace("_", "-")
                raise ValueError(f"{flag} describes classifier-free guidance; put it into --guidance")
        if classifiers:
            raise ValueError("--classifier excludes --guidance; write --guidance 'METHOD + caif:classifier=…,target=…'")
        return parse(arguments.guidance, imports=True)
    if fields["scale"] is None:
        fields["scale"] = 1.0 if classifiers or constraint_options.is_given(arguments) else 1.5
    cfg = CFG(**fields)
    if classifiers and cfg.is_neutral:
        return as_guidance(classifiers)
    return as_guidance([cfg, *classifiers])


def _classifiers(arguments: argparse.Namespace) -> list[Any]:
    from ..guidance import CAIF

    names = arguments.classifier
    targets = arguments.target
    weights = arguments.weight or [5.0] * len(names)
    if len(targets) < len(names):
        raise ValueError("--classifier needs --target: give one target per classifier")
    if len(targets) > len(names):
        raise ValueError("--target needs --classifier: give one classifier per target")
    if len(weights) != len(names):
        raise ValueError("--weight needs --classifier: give one weight per classifier, or none")
    fields = {
        **values_of(CAIF_FIELDS, arguments),
        "top_k": arguments.candidates or None,
        "include_prompt": not arguments.classify_continuation,
    }
    return [CAIF(name, target, weight, **fields) for name, target, weight in zip(names, targets, weights, strict=True)]


def add_decoding(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """Sampling and length."""
    group = parser.add_argument_group("decoding (greedy unless a sampling option is given)")
    group.add_argument("--max-new-tokens", type=int, default=max_new_tokens, help="longest continuation [%(default)s]")
    group.add_argument("--temperature", type=float)
    group.add_argument("--top-p", type=float)
    group.add_argument("--top-k", type=int)
    group.add_argument("--min-p", type=float)
    group.add_argument("--repetition-penalty", type=float)
    group.add_argument("--no-repeat-ngram-size", type=int)
    group.add_argument("--seed", type=int, help="makes sampling reproducible")
    group.add_argument(
        "--stop", action="append", help="text that ends a continuation, and is part of it; may be repeated"
    )
    group.add_argument("--exclude-stop", action="store_true", help="leave the text of --stop out")


def add_speculation(parser: argparse.ArgumentParser) -> None:
    """``--speculation``."""
    parser.add_argument(
        "--speculation",
        choices=DRAFTS,
        help="guess tokens and verify the guesses in the same passes: the same text, faster",
    )


def decoding(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for :func:`textguide.generate` from :func:`add_decoding`'s arguments."""
    options = {"max_new_tokens": arguments.max_new_tokens, "seed": arguments.seed, "stop": arguments.stop}
    # An option that is not given stays out, so that the model's own generation_config decides.
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "no_repeat_ngram_size"):
        if getattr(arguments, name) is not None:
            options[name] = getattr(arguments, name)
    if arguments.exclude_stop:
        options["include_stop"] = False
    return options


def read_prompts(arguments: argparse.Namespace) -> list[Any]:
    """Prompts from the arguments, from ``--file`` (``-`` for standard input), or from standard input.

    A file has one prompt per line. A line of JSON may be a text, a chat (a list of messages), or an object with a
    ``prompt`` or ``messages``.

    Raises:
        ValueError: there is no prompt, or a line cannot be read.
    """
    if arguments.prompt and arguments.file:
        raise ValueError(f"--file {arguments.file} excludes other prompts; give one or the other")
    if arguments.prompt:
        return list(arguments.prompt)
    if arguments.file and arguments.file != "-":
        text = read_text(arguments.file, "--file")
    elif arguments.file == "-" or not sys.stdin.isatty():
        text = sys.stdin.read()
    else:
        raise ValueError("no prompt given; add one, name a --file, or pipe text in")
    # Not splitlines: that also splits at the separators that JSON leaves unescaped inside a text.
    prompts = [_parse(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not prompts:
        source = "standard input" if arguments.file in (None, "-") else f"--file {arguments.file}"
        raise ValueError(f"{source} has no prompt; write one per line")
    return prompts


def read_text(path: str, option: str) -> str:
    """The text of a file.

    Raises:
        ValueError: it cannot be read; the message names ``option``.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{option} {path} is not UTF-8 text") from error
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be read ({error.strerror}); check the path") from error


def refuse_empty(prompts: Sequence[Any], guidance: Any) -> None:
    """Refuse an empty prompt, which is the begin token, if the other branch reads the last token of the prompt.

    Raises:
        ValueError: both branches would read the begin token, so that guidance could not change anything.
    """
    from ..guidance import Branch, split

    branching = split(guidance).branching
    if branching is None or not branching.branches or "" not in prompts:
        return
    if all(branch == Branch() for branch in branching.branches):
        raise ValueError(
            "a prompt is empty: it is the begin token, which the other branch reads too; write a text, or add "
            "--negative-prompt"
        )


def evaluation(purpose: str) -> Any:
    """The package ``textguide.eval``, whose functions need the extra ``eval``.

    Args:
        purpose: the command that needs it, for the error message.

    Raises:
        MissingExtraError: the extra is not installed.
    """
    import textguide.eval

    try:
        textguide.eval.run_sweep  # noqa: B018  (imports lm-eval)
    except ImportError as error:
        raise MissingExtraError(str(error.name), "eval", purpose) from error
    return textguide.eval


def read_lines(path: str, option: str, content: str) -> list[str]:
    """The lines of a file that are not empty.

    A first line that is the name of a column is not among them.

    Raises:
        ValueError: it cannot be read, or has none; the message names ``option`` and asks for ``content`` on each line.
    """
    lines = [line for line in read_text(path, option).splitlines() if line.strip()]
    if names_columns(lines[:1]):
        del lines[0]
    if not lines:
        raise ValueError(f"{option} {path} is empty; write {content} on each line")
    return lines


def _parse(line: str, number: int) -> Any:
    from ..guidance.prompts import as_prompt

    if line.lstrip()[:1] not in '{["':
        return line
    try:
        value = json.loads(line)
    except ValueError:
        return line
    if isinstance(value, dict):
        value = value.get("messages", value.get("prompt"))
    if not value or as_prompt(value) is None:
        raise ValueError(f"line {number} has no prompt; write a text, a list of messages, or an object with one")
    return value
