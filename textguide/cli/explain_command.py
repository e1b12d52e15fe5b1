"""``textguide explain``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from . import caption_command, options


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "explain", help="show which tokens guidance raised and lowered at each step", description=__doc__
    )
    parser.add_argument("prompt", nargs="?", help="text to continue [--file, or standard input]")
    parser.add_argument("--file", help="a file with one prompt: text, or JSON with a chat; - reads standard input")
    parser.add_argument("--system", help="system prompt; makes the prompt a chat")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    group = parser.add_argument_group("of an image")
    group.add_argument(
        "--image",
        metavar="FILE",
        help="explain its caption; --model is then a captioner [drawn-scenes], PROMPT its prompt",
    )
    group.add_argument(
        "--unconditional", default="blank", metavar="KIND", help="what the other branch sees, as for textguide caption"
    )
    group.add_argument("--language-model", metavar="MODEL", help="a text-only model for the guidance lm")
    group = parser.add_argument_group("what is shown")
    group.add_argument("--top", type=int, default=5, help="tokens raised and tokens lowered, a step [%(default)s]")
    group.add_argument(
        "--rank",
        choices=("probability", "ratio"),
        default="probability",
        help="probability: by how much a token's probability changed; ratio: by which factor [%(default)s]",
    )
    group.add_argument(
        "--min-prob",
        type=float,
        default=1e-3,
        help="leave out tokens that are less likely both with and without guidance; 0 ranks all [%(default)s]",
    )
    group.add_argument("--steps", type=int, metavar="N", help="the first N steps alone; the text is written to its end")
    group.add_argument("--changed-only", action="store_true", help="only steps at which the most likely token changed")
    group.add_argument("--html", metavar="FILE", help="write one self-contained page with a heat map, of all steps")
    group.add_argument("--json", action="store_true", help="print the explanation as JSON")
    options.add_model(parser)
    options.add_guidance(parser)
    options.add_constraint(parser, every_text=False)
    options.add_decoding(parser, 24)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Decode one prompt and show every step."""
    from ..explanation.explaining import explain
    from ..explanation.terminal import show

    if arguments.steps is not None and arguments.steps < 1:
        raise ValueError(f"--steps {arguments.steps} must be 1 or more")
    guidance = options.constrained(arguments, options.guidance(arguments))
    decoding = options.decoding(arguments)
    if arguments.image is not None:
        prompt, model, tokenizer = _pictured(arguments, decoding)
    else:
        prompt = _prompt(arguments)
        model, tokenizer = options.load(arguments)
    explanation = explain(
        model,
        tokenizer,
        prompt,
        guidance,
        top=arguments.top,
        min_prob=arguments.min_prob,
        rank=arguments.rank,
        system=arguments.system,
        models=options.extra_models(arguments, model),
        **decoding,
    )
    if arguments.html:
        explanation.save_html(Path(arguments.html))
    if arguments.json:
        steps = explanation.selected(arguments.steps, arguments.changed_only)
        record = {**explanation.to_dict(), "steps": [step.to_dict() for step in steps]}
        print(json.dumps(record, ensure_ascii=False))
    else:
        show(explanation, first=arguments.steps, changed=arguments.changed_only, console=_console())
        if arguments.html:
            print(f"wrote {arguments.html}")
    return 0


def _prompt(arguments: argparse.Namespace) -> Any:
    arguments.prompt = [] if arguments.prompt is None else [arguments.prompt]
    prompts = options.read_prompts(arguments)
    if len(prompts) > 1:
        raise ValueError(f"explain takes one prompt and got {len(prompts)}; run it once for each")
    prompt = prompts[0]
    if arguments.chat and isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return prompt


def _pictured(arguments: argparse.Namespace, decoding: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The prompt of an image, the captioner and its processor; the image joins ``decoding``."""
    for name in ("file", "system", "chat"):
        if getattr(arguments, name):
            raise ValueError(f"--{name} does not work with --image; leave it out")
    caption_command.check_files([arguments.image])
    if arguments.model == "smollm2":
        arguments.model = "drawn-scenes"
    model, processor = caption_command.load(arguments)
    decoding |= {"images": arguments.image, **caption_command.pictured(arguments)}
    return arguments.prompt, model, processor


def _console() -> Any:
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich would exit with 1; the command line treats a reader that goes away as no error

    return Terminal()
