"""``textguide explain``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..support import files
from ..support.checks import whole_number
from ..support.options import add_options
from . import caption_command, constraint_options, options
from .parser import add_command
from .signatures import settings_of, values_of

RANKING = settings_of(
    "explanation/explaining.py",
    "explain",
    "top rank min_prob",
    top={"help": "number of raised tokens and of lowered tokens per step"},
    rank={
        "choices": ("probability", "ratio"),
        "help": "probability: by how much a token's probability changed; ratio: by which factor",
    },
    min_prob={"help": "leave out tokens that are less likely, both with and without guidance; 0 ranks all"},
)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "explain",
        description="Continue one prompt under guidance, and show for each token how guidance changed the distribution "
        "that it was taken from.",
        examples=(
            'explain "The dragon flew over Paris, France," --scale 1.5',
            'explain "The dragon flew over Paris, France," --html dragon.html',
            'explain "The film was" --classifier sentiment --target positive --changed-only',
            "explain --image photo.png --scale 2 --html caption.html",
        ),
    )
    parser.add_argument("prompt", nargs="?", help="text to continue [--file, or standard input]")
    parser.add_argument("--file", help="a file with one prompt: text, or JSON with a chat; - reads standard input")
    parser.add_argument("--system", help="system prompt; makes the prompt a chat")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    group = parser.add_argument_group("image")
    group.add_argument(
        "--image",
        metavar="FILE",
        help="explain the caption of this image; --model is then a captioner [drawn-scenes], and PROMPT its prompt",
    )
    caption_command.add_branches(group)
    group = parser.add_argument_group("output")
    add_options(group, RANKING)
    group.add_argument("--steps", type=int, metavar="N", help="show only the first N steps of the text")
    group.add_argument("--changed-only", action="store_true", help="only steps at which the most likely token changed")
    group.add_argument("--html", metavar="FILE", help="write a self-contained page with a heat map of all steps")
    group.add_argument("--json", action="store_true", help="print the explanation as JSON")
    options.add_model(parser)
    options.add_guidance(parser)
    constraint_options.add_sampling(parser, every_text=False)
    options.add_decoding(parser, 24)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Decode one prompt and show every step."""
    from ..explanation.explaining import explain
    from ..explanation.terminal import show

    if arguments.steps is not None:
        whole_number("steps", arguments.steps, 1)
    page = files.writable_file(arguments.html, "--html") if arguments.html else None
    guidance = constraint_options.constrained(arguments, options.guidance(arguments))
    decoding = options.decoding(arguments)
    if arguments.image is not None:
        prompt, model, tokenizer = _pictured(arguments, decoding)
    else:
        prompt = _prompt(arguments)
        options.refuse_empty([prompt], guidance)
        model, tokenizer = options.load(arguments)
    explanation = explain(
        model,
        tokenizer,
        prompt,
        guidance,
        **values_of(RANKING, arguments),
        system=arguments.system,
        models=options.extra_models(arguments, model),
        **decoding,
    )
    if page is not None:
        explanation.save_html(page)
    if arguments.json:
        steps = explanation.selected(arguments.steps, arguments.changed_only)
        record = {**explanation.to_dict(), "steps": [step.to_dict() for step in steps]}
        print(json.dumps(record, ensure_ascii=False))
    else:
        show(explanation, first=arguments.steps, changed=arguments.changed_only, console=_console())
        if page is not None:
            print(f"wrote {page}")
    return 0


def _prompt(arguments: argparse.Namespace) -> Any:
    arguments.prompt = [] if arguments.prompt is None else [arguments.prompt]
    prompts = options.read_prompts(arguments)
    if len(prompts) > 1:
        raise ValueError(f"explain accepts one prompt and got {len(prompts)}; run it once for each")
    prompt = prompts[0]
    if arguments.chat and isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return prompt


def _pictured(arguments: argparse.Namespace, decoding: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The prompt of an image, the captioner and its processor; the image is added to ``decoding``."""
    for name in ("file", "system", "chat"):
        if getattr(arguments, name):
            raise ValueError(f"--{name} does not work with --image; leave it out")
    caption_command.check_files([arguments.image])
    if arguments.model == "smollm2":
        arguments.model = "drawn-scenes"
    model, processor = caption_command.load(arguments)
    decoding |= {"images": arguments.image, **caption_command.branches(arguments)}
    return arguments.prompt, model, processor


def _console() -> Any:
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich would exit with 1; for the command line a reader that goes away is not an error

    return Terminal()
