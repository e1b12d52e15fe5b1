"""Arguments that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from . import constraint_options


def add_model(
    parser: argparse.ArgumentParser, default: str = "smollm2", known: str = "smollm2 (bundled), a GGUF file"
) -> None:
    """``--model``, ``--device``, ``--dtype``, ``--device-map``."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", default=default, help=f"{known}, a folder or a hub name [%(default)s]")
    group.add_argument("--device", help="cpu, cuda, cuda:1… [a GPU if there is one]")
    group.add_argument("--dtype", help="float32, bfloat16 or float16 [float32 on a CPU, else the checkpoint's]")
    group.add_argument("--device-map", help="accelerate's device map, such as auto, for models larger than one device")
    group.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint")
    group.add_argument("--adapter", metavar="FOLDER", help="an adapter (PEFT), which is added to the weights")
    group.add_argument(
        "--adapter-scale", type=float, metavar="γ", help="of an adapter that `textguide distill` trained [its own]"
    )


def load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The model and tokenizer that :func:`add_model`'s arguments name."""
    from ..models.loading import load as load_model

    return load_model(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        device_map=arguments.device_map,
        trust_remote_code=arguments.trust_remote_code,
        adapter=arguments.adapter,
        adapter_scale=arguments.adapter_scale,
    )


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """The fields of classifier-free guidance, and classifiers that weigh the candidates."""
    from ..guidance.schedules import SCHEDULES

    group = parser.add_argument_group("any guidance")
    group.add_argument(
        "--guidance",
        metavar="METHOD",
        help="a method with its fields, such as apg:scale=2.0, formula:'cond - 0.5*last', python:MODULE:CLASS of your "
        "own, or a JSON file; `textguide methods` lists them; excludes the options of the next two groups",
    )
    add_extra_model(group)
    group = parser.add_argument_group("classifier-free guidance")
    group.add_argument(
        "--scale", type=float, help="γ; 1 leaves it out [1.5; 1 where a classifier or a constraint guides]"
    )
    group.add_argument("--negative-prompt", help="text to move away from [the last token of the prompt]")
    group.add_argument("--negative-system", help="system prompt to move away from; the rest of the chat stays")
    group.add_argument(
        "--schedule",
        default="constant",
        help=f"how γ moves: {', '.join(SCHEDULES)}; NAME:NUMBER sets a parameter",
    )
    group.add_argument("--guidance-start", type=float, default=0.0, help="progress in [0, 1] at which guidance starts")
    group.add_argument("--guidance-stop", type=float, default=1.0, help="progress at which guidance ends")
    group.add_argument("--min-scale", type=float, help="lower bound on γ")
    group.add_argument("--max-scale", type=float, help="upper bound on γ")
    group = parser.add_argument_group("guidance by a classifier (CAIF); the first three may be repeated together")
    group.add_argument(
        "--classifier",
        action="append",
        default=[],
        metavar="NAME",
        help="sentiment, profanity, a folder that `textguide classifier train` wrote, gzip:FILE, hf:NAME…",
    )
    group.add_argument("--target", action="append", default=[], metavar="LABEL", help="class to steer towards")
    group.add_argument("--weight", action="append", default=[], type=float, metavar="α", help="below 0 steers away [5]")
    group.add_argument("--candidates", type=int, default=100, help="tokens scored a step; 0 scores all [%(default)s]")
    group.add_argument("--entropy-threshold", type=float, default=0.0, help="score only rows above this many nats")
    group.add_argument("--every", type=int, default=1, help="score at every n-th step [%(default)s]")
    group.add_argument("--weight-schedule", default="constant", help="how α moves; as --schedule [%(default)s]")
    group.add_argument("--classify-continuation", action="store_true", help="the classifier does not see the prompt")


_CFG_OPTIONS: dict[str, Any] = {
    "scale": None, "negative_prompt": None, "negative_system": None, "schedule": "constant", "guidance_start": 0.0,
    "guidance_stop": 1.0, "min_scale": None, "max_scale": None,
}  # fmt: skip
"""The options of classifier-free guidance with their defaults."""


def add_extra_model(parser: Any) -> None:
    """``--extra-model``."""
    parser.add_argument(
        "--extra-model",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="a further model by the name that the guidance gives it, such as amateur=smollm2-small; a folder of PEFT "
        "gives an adapter of --model; may be repeated",
    )


def extra_model_names(arguments: argparse.Namespace) -> dict[str, str]:
    """What ``--extra-model`` names, by the name that the guidance gives it."""
    names = {}
    for text in arguments.extra_model:
        name, equals, source = text.partition("=")
        if not equals or not name or not source:
            raise ValueError(f"--extra-model {text!r} must be NAME=MODEL, such as amateur=FOLDER")
        names[name] = source
    return names


def extra_models(arguments: argparse.Namespace, model: Any = None) -> dict[str, Any] | None:
    """The models that ``--extra-model`` names, loaded as ``--model`` is; folders of adapters as adapters of ``model``,
    which it is. None where there are none."""
    from ..models.adapters import load_further

    options = {"device": arguments.device, "dtype": arguments.dtype, "trust_remote_code": arguments.trust_remote_code}
    return load_further(model, extra_model_names(arguments), **options) or None


def guidance(arguments: argparse.Namespace) -> Any:
    """The guidance that :func:`add_guidance`'s arguments describe."""
    from ..guidance import CFG, as_guidance
    from ..guidance.spec import parse

    classifiers = _classifiers(arguments)
    if arguments.guidance is not None:
        for name, default in _CFG_OPTIONS.items():
            if getattr(arguments, name) != default:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} describes classifier-free guidance; put it into --guidance")
        if classifiers:
            raise ValueError("--classifier excludes --guidance; write --guidance 'METHOD + caif:classifier=…,target=…'")
        return parse(arguments.guidance, imports=True)
    constrained = any(getattr(arguments, name, None) is not None for name in constraint_options.FORMS)
    scale = arguments.scale if arguments.scale is not None else 1.0 if classifiers or constrained else 1.5
    cfg = CFG(
        scale=scale,
        negative_prompt=arguments.negative_prompt,
        negative_system=arguments.negative_system,
        schedule=arguments.schedule,
        start=arguments.guidance_start,
        stop=arguments.guidance_stop,
        min_scale=arguments.min_scale,
        max_scale=arguments.max_scale,
    )
    return as_guidance([*([] if classifiers and cfg.is_neutral else [cfg]), *classifiers])


def add_constraint(parser: argparse.ArgumentParser, every_text: bool = True) -> None:
    """What may be generated, and how it is sampled.

    Args:
        every_text: whether the command can print all texts of a prompt.
    """
    from ..guidance.awrs import SAMPLERS

    group = constraint_options.add_constraint(parser)
    group.add_argument(
        "--particles", type=int, help="texts a prompt that are weighed and resampled; one is drawn by weight [1]"
    )
    group.add_argument(
        "--sampler",
        "--constraint-method",  # its former name
        choices=SAMPLERS,
        help="awrs keeps the model's own distribution among the texts that fit, by weights; cars does so exactly, by "
        "texts that begin again; asap learns from what failed; mask rules tokens out one step at a time [awrs]",
    )
    if every_text:
        group.add_argument("--all-particles", action="store_true", help="print every particle with its weight")


def constrained(arguments: argparse.Namespace, guidance: Any, engine: str | None = None) -> Any:
    """``guidance`` and the constraint that :func:`add_constraint`'s arguments describe.

    Args:
        engine: what checks the constraint; None: its own default.

    Raises:
        ValueError: an argument needs a constraint, or cannot be used.
    """
    from ..guidance import AWRS, as_guidance

    constraint = constraint_options.constraint(arguments, engine)
    if constraint is None:
        for name in ("particles", "sampler", "all_particles", "form_after", "lookahead"):
            if getattr(arguments, name, None):
                option = "--after" if name == "form_after" else "--" + name.replace("_", "-")
                raise ValueError(f"{option} needs a constraint; add --regex, --json-schema, --grammar or --constraint")
        return guidance
    lookahead = arguments.lookahead or "auto"
    try:
        awrs = AWRS(
            constraint,
            particles=1 if arguments.particles is None else arguments.particles,
            sampler=arguments.sampler or "awrs",
            after=arguments.form_after,
            lookahead={"none": None}.get(lookahead, lookahead),
        )
    except ValueError as error:
        raise ValueError(f"--{error}" if str(error).startswith("particles") else str(error)) from None
    return as_guidance([*([] if guidance.is_neutral else [guidance]), awrs])


def _classifiers(arguments: argparse.Namespace) -> list[Any]:
    from ..guidance import CAIF

    names, targets, weights = arguments.classifier, arguments.target, arguments.weight
    if len(targets) != len(names):
        raise ValueError(f"--classifier is given {len(names)} times and --target {len(targets)}; give each its target")
    if weights and len(weights) != len(names):
        raise ValueError(f"--weight is given {len(weights)} times and --classifier {len(names)}; give each its weight")
    return [
        CAIF(
            name,
            target,
            weights[number] if weights else 5.0,
            top_k=arguments.candidates or None,
            entropy_threshold=arguments.entropy_threshold,
            every=arguments.every,
            include_prompt=not arguments.classify_continuation,
            schedule=arguments.weight_schedule,
        )
        for number, (name, target) in enumerate(zip(names, targets, strict=True))
    ]


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
    group.add_argument("--stop", action="append", help="text that ends a continuation, and stays; may be repeated")
    group.add_argument("--exclude-stop", action="store_true", help="leave the text of --stop out")


def add_speculation(parser: argparse.ArgumentParser) -> None:
    """``--speculation``."""
    from ..engine.speculation.value import DRAFTS

    parser.add_argument(
        "--speculation", choices=DRAFTS, help="guess tokens and read the guesses in the same passes; same text, faster"
    )


def decoding(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for :func:`textguide.generate` from :func:`add_decoding`'s arguments."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "no_repeat_ngram_size")
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return {
        **options,
        "max_new_tokens": arguments.max_new_tokens,
        "seed": arguments.seed,
        "stop": arguments.stop,
        **({"include_stop": False} if arguments.exclude_stop else {}),
    }


def read_prompts(arguments: argparse.Namespace) -> list[Any]:
    """Prompts from the arguments, ``--file`` (``-`` for standard input), or standard input if it is no terminal.

    A file holds one prompt a line; a line of JSON may be a text, a chat (a list of messages), or an object with a
    ``prompt`` or ``messages``.

    Raises:
        ValueError: there is no prompt, or a line cannot be read.
    """
    if arguments.prompt and arguments.file:
        raise ValueError(f"--file {arguments.file} excludes other prompts; give one or the other")
    if arguments.prompt:
        return list(arguments.prompt)
    if arguments.file and arguments.file != "-":
        text = _read(Path(arguments.file))
    elif arguments.file == "-" or not sys.stdin.isatty():
        text = sys.stdin.read()
    else:
        raise ValueError("no prompt given; add one, name a --file, or pipe text in")
    # Not splitlines: that also splits at the separators that JSON leaves unescaped inside a text.
    prompts = [_parse(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not prompts:
        source = "standard input" if arguments.file in (None, "-") else f"--file {arguments.file}"
        raise ValueError(f"{source} holds no prompt; write one a line")
    return prompts


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--file {path} is not UTF-8 text") from error
    except OSError as error:
        raise ValueError(f"--file {path} cannot be read ({error.strerror}); check the path") from error


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
        raise ValueError(f"line {number} holds no prompt; write a text, a list of messages, or an object with one")
    return value
