"""Captioning in ``textguide eval``: its options, and the run that they describe."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

from ..support.options import add_options, from_arguments

TASK = "captioning"
OWN = ("unconditional", "prompt", "max_new_tokens")
"""Fields of CaptioningOptions that are options only of captioning; ``limit`` and ``seed`` are those of a sweep."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    from textguide.eval.captions.options import CaptioningOptions

    group = parser.add_argument_group(
        "captioning", "--tasks captioning --data FOLDER_OR_COCO_JSON; --model is then a captioner [drawn-scenes]"
    )
    group.add_argument(
        "--judge",
        help="a CLIP-like model for retrieval and CLIPScore, or none [drawn-scenes-dual for drawn-scenes, otherwise "
        "none]",
    )
    group.add_argument("--language-model", help="a text-only model for the guidance lm, such as smollm2")
    add_options(group, CaptioningOptions, OWN)


def run(arguments: argparse.Namespace, settings: list[Any]) -> Any:
    """Run the captioning that ``arguments`` describe.

    Raises:
        ValueError: an option is missing or does not work with captioning.
        MissingExtraError: a package is not installed.
    """
    if arguments.tasks.strip() != TASK:
        raise ValueError(f"--tasks {arguments.tasks}: captioning does not run with other tasks; leave these out")
    if not arguments.data:
        raise ValueError("--tasks captioning needs --data with a folder of images and captions, or COCO's annotations")
    for flag, value in (("--negative-prompt", arguments.negative_prompt), ("--num-fewshot", arguments.num_fewshot)):
        if value is not None:
            raise ValueError(f"{flag} does not work with --tasks captioning; leave it out")
    from ..captioning import load

    try:
        from textguide.eval import CaptioningOptions, run_captioning
    except ImportError as error:
        from ..support.errors import MissingExtraError

        raise MissingExtraError(str(error.name), "captioning", "textguide eval --tasks captioning") from error
    batch_size = 16 if arguments.batch_size == "auto" else int(arguments.batch_size)
    values = {"batch_size": batch_size, "limit": arguments.limit, "seed": arguments.seed}
    captioning = from_arguments(CaptioningOptions, arguments, **values)
    name = "drawn-scenes" if arguments.model == "smollm2" else arguments.model
    judge_name = arguments.judge or ("drawn-scenes-dual" if name == "drawn-scenes" else "none")
    names = {"model": name}
    model, processor = load(name, device=arguments.device)
    judge = language_model = None
    if judge_name != "none":
        names["judge"] = judge_name
        judge = load(judge_name, device=arguments.device)
    if arguments.language_model:
        from ..models.loading import load as load_text

        names["language_model"] = arguments.language_model
        language_model = load_text(arguments.language_model, device=arguments.device)
    return run_captioning(
        arguments.data,
        settings,
        model,
        processor,
        judge=judge,
        language_model=language_model,
        output=arguments.output,
        options=captioning,
        names=names,
        command=shlex.join(["textguide", *sys.argv[1:]]),
    )
