"""Captioning in ``textguide eval``: its options, and how they become a run."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

TASK = "captioning"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group(
        "captioning", "--tasks captioning --data FOLDER_OR_COCO_JSON; --model is then a captioner [drawn-scenes]"
    )
    group.add_argument("--judge", help="a CLIP-like model for retrieval and CLIPScore; none leaves them out "
                       "[drawn-scenes-dual for drawn-scenes, else none]")  # fmt: skip
    group.add_argument(
        "--unconditional", default="blank", help="what the other branch sees: blank, text, noise or an image's file"
    )
    group.add_argument("--language-model", help="a text-only model for the guidance lm, such as smollm2")
    group.add_argument("--prompt", help="a text for every image, with the model's placeholder for it")
    group.add_argument("--max-new-tokens", type=int, default=40, help="longest caption [%(default)s]")


def run(arguments: argparse.Namespace, settings: list[Any]) -> Any:
    """The result of the run that ``arguments`` describe.

    Raises:
        ValueError: an option is missing or does not work with captioning.
        MissingExtraError: a package is not installed.
    """
    if arguments.tasks.strip() != TASK:
        raise ValueError(f"--tasks {arguments.tasks}: captioning runs by itself; leave the other tasks out")
    if not arguments.data:
        raise ValueError("--tasks captioning needs --data with a folder of images and captions, or COCO's annotations")
    for name, value in (("--negative-prompt", arguments.negative_prompt), ("--num-fewshot", arguments.num_fewshot)):
        if value is not None:
            raise ValueError(f"{name} does not work with --tasks captioning; leave it out")
    from ..captioning import load

    try:
        from textguide.eval import CaptioningOptions, run_captioning
    except ImportError as error:
        from ..support.errors import MissingExtraError

        raise MissingExtraError(str(error.name), "captioning", "textguide eval --tasks captioning") from error
    name = "drawn-scenes" if arguments.model == "smollm2" else arguments.model
    judge = arguments.judge or ("drawn-scenes-dual" if name == "drawn-scenes" else "none")
    given = {"device": arguments.device}
    model, processor = load(name, **given)
    names = {"model": name}
    eyes = language_model = None
    if judge != "none":
        eyes, names["judge"] = load(judge, **given), judge
    if arguments.language_model:
        from ..models.loading import load as load_text

        language_model, names["language_model"] = load_text(arguments.language_model, **given), arguments.language_model
    batch = 16 if arguments.batch_size == "auto" else int(arguments.batch_size)
    return run_captioning(
        arguments.data,
        settings,
        model,
        processor,
        judge=eyes,
        language_model=language_model,
        output=arguments.output,
        options=CaptioningOptions(
            unconditional=arguments.unconditional,
            prompt=arguments.prompt,
            max_new_tokens=arguments.max_new_tokens,
            batch_size=batch,
            limit=arguments.limit,
            seed=arguments.seed,
        ),
        names=names,
        command=shlex.join(["textguide", *sys.argv[1:]]),
    )
