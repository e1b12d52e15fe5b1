"""``textguide caption``: say what is in images, under guidance."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from . import options


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("caption", help="caption images under guidance", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files of images")
    parser.add_argument("--batch-size", type=int, default=16, help="images captioned at once [%(default)s]")
    parser.add_argument("--json", action="store_true", help="one JSON object an image")
    add_images(parser)
    options.add_model(parser, default="drawn-scenes", known="drawn-scenes (bundled)")
    options.add_guidance(parser)
    options.add_decoding(parser, 40)
    parser.set_defaults(run=run)


def add_images(parser: Any) -> None:
    """What captioners take beside images."""
    parser.add_argument(
        "--prompt-text", metavar="TEXT", help="asked of every image, with the model's placeholder for it"
    )
    parser.add_argument(
        "--unconditional", default="blank", metavar="KIND",
        help="what the other branch sees: blank, text, noise or an image's file [%(default)s]",
    )  # fmt: skip
    parser.add_argument("--language-model", metavar="MODEL", help="a text-only model for the guidance lm")


def run(arguments: argparse.Namespace) -> int:
    """Caption batch by batch; each is printed when it is finished."""
    from ..captioning.generation import caption

    guidance = options.guidance(arguments)
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size {arguments.batch_size} must be 1 or more")
    check_files(arguments.images)
    model, processor = load(arguments)
    given = {**pictured(arguments), "models": options.extra_models(arguments, model), **options.decoding(arguments)}
    for start in range(0, len(arguments.images), arguments.batch_size):
        files = arguments.images[start : start + arguments.batch_size]
        out = caption(model, processor, files, guidance, prompts=arguments.prompt_text, **given)
        for file, text, reason in zip(files, out.texts, out.finish_reasons, strict=True):
            if arguments.json:
                record = {"image": file, "text": text.strip(), "finish_reason": reason, "guidance": guidance.to_dict()}
                print(json.dumps(record, ensure_ascii=False), flush=True)
            else:
                print(f"{file}: {text.strip()}" if len(arguments.images) > 1 else text.strip(), flush=True)
    return 0


def load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The captioner and processor that ``--model`` names."""
    from ..captioning import load as load_captioner

    return load_captioner(arguments.model, device=arguments.device)


def pictured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of :func:`textguide.caption` from :func:`add_images`'s arguments."""
    given: dict[str, Any] = {"unconditional": arguments.unconditional}
    if arguments.language_model:
        from ..models.loading import load as load_text

        given["language_model"] = load_text(arguments.language_model, device=arguments.device)
    return given


def check_files(files: list[str]) -> None:
    """Refuse a file that is not there before a model is loaded."""
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"{file} is no file; name images")
