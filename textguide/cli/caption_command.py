"""``textguide caption``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..support.checks import whole_number
from . import options
from .parser import add_command


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "caption",
        description="Caption images under guidance that moves the caption away from what the model writes without the "
        "image.",
        examples=(
            "caption photo.png --scale 2",
            "caption *.png --json --model FOLDER",
            "caption photo.png --guidance lm:alpha=1 --language-model smollm2-small",
        ),
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--batch-size", type=int, default=16, help="images per batch [%(default)s]")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")
    parser.add_argument(
        "--prompt-text", metavar="TEXT", help="prompt for every image, with the model's placeholder for the image"
    )
    add_branches(parser)
    options.add_model(parser, default="drawn-scenes", known="drawn-scenes (bundled)")
    options.add_guidance(parser)
    options.add_decoding(parser, 40)
    parser.set_defaults(run=run)


def add_branches(parser: Any) -> None:
    """What the branches of a captioner see and run."""
    parser.add_argument(
        "--unconditional",
        default="blank",
        metavar="KIND",
        help="input of the unconditional branch: blank, text, noise or the file of an image [%(default)s]",
    )
    parser.add_argument("--language-model", metavar="MODEL", help="a text-only model for the guidance lm")


def run(arguments: argparse.Namespace) -> int:
    """Caption batch by batch; each batch is printed when it is finished."""
    from ..captioning.generation import caption

    guidance = options.guidance(arguments)
    whole_number("batch_size", arguments.batch_size, 1)
    check_files(arguments.images)
    model, processor = load(arguments)
    settings = {
        **branches(arguments),
        "models": options.extra_models(arguments, model),
        **options.decoding(arguments),
    }
    for start in range(0, len(arguments.images), arguments.batch_size):
        images = arguments.images[start : start + arguments.batch_size]
        out = caption(model, processor, images, guidance, prompts=arguments.prompt_text, **settings)
        for image, text, reason in zip(images, out.texts, out.finish_reasons, strict=True):
            if arguments.json:
                record = {"image": image, "text": text.strip(), "finish_reason": reason, "guidance": guidance.to_dict()}
                print(json.dumps(record, ensure_ascii=False), flush=True)
            elif len(arguments.images) > 1:
                print(f"{image}: {text.strip()}", flush=True)
            else:
                print(text.strip(), flush=True)
    return 0


def load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Load the captioner and processor that ``--model`` names."""
    from ..captioning import load as load_captioner

    return load_captioner(arguments.model, device=arguments.device)


def branches(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of :func:`textguide.caption` from :func:`add_branches`'s arguments."""
    settings: dict[str, Any] = {"unconditional": arguments.unconditional}
    if arguments.language_model:
        from ..models.loading import load as load_text

        settings["language_model"] = load_text(arguments.language_model, device=arguments.device)
    return settings


def check_files(files: list[str]) -> None:
    """Refuse files that do not exist, before a model is loaded."""
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"{file} is not a file; name images")
