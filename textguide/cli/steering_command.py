"""``textguide steering``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..support import files
from ..support.checks import whole_number
from . import options
from .parser import add_command
from .progress import progress_bar


def add(commands: Any) -> None:
    """Add the command to the parser."""
    examples = (
        "steering train pairs.tsv --out FOLDER",
        "steering train --positive polite.txt --negative rude.txt --out FOLDER",
        'generate "Dear customer," --guidance steering:vector=FOLDER',
    )
    parser = add_command(
        commands, "steering", description="Train a vector that Steering adds inside a model.", examples=examples
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="{train}")
    train = actions.add_parser("train", help="compute the difference of means over contrasting texts, and save it")
    train.add_argument("pairs", nargs="?", help="a file with a positive text, a tab and a negative text on each line")
    train.add_argument(
        "--positive", metavar="FILE", help="instead of PAIRS: texts to steer towards, one per line; needs --negative"
    )
    train.add_argument("--negative", metavar="FILE", help="texts to steer away from, one per line")
    train.add_argument("--out", required=True, metavar="FOLDER", help="folder of the vector")
    train.add_argument("--overwrite", action="store_true", help="replace the content of that folder")
    train.add_argument(
        "--header", action=argparse.BooleanOptionalAction, help="the first line has the column names [detected]"
    )
    train.add_argument("--batch-size", type=int, default=16, help="texts per batch [%(default)s]")
    train.add_argument("--json", action="store_true", help="print everything as JSON")
    options.add_model(train)
    train.set_defaults(run=run_train)


def run_train(arguments: argparse.Namespace) -> int:
    """Read the texts, save the vector, and report its length."""
    from .. import steering

    whole_number("batch_size", arguments.batch_size, 1)
    out = files.vacant(arguments.out, arguments.overwrite)
    positive, negative = _texts(arguments)
    model, tokenizer = options.load(arguments)
    with progress_bar() as bar:
        task = bar.add_task("reading", total=len(positive) + len(negative))
        vector = steering.train(
            model,
            tokenizer,
            positive,
            negative,
            batch_size=arguments.batch_size,
            name=arguments.model,
            progress=lambda texts: bar.advance(task, texts),
        )
    vector = vector.save(out)
    norms = [round(norm, 4) for norm in vector.directions.norm(dim=-1).tolist()]
    report = {
        "out": str(out),
        "fingerprint": vector.fingerprint,
        "model": vector.model,
        "positive": len(positive),
        "negative": len(negative),
        "norms": norms,
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        print(f"{len(positive)} positive and {len(negative)} negative texts, {len(norms)} layers")
        print(f"length of the vector: {norms[0]:g} after the first layer, {norms[-1]:g} after the last layer")
        print(f"wrote {out}")
    return 0


def _texts(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    from ..steering import read_pairs, read_texts

    if arguments.pairs is not None:
        if arguments.positive or arguments.negative:
            raise ValueError("PAIRS excludes --positive and --negative; give one or the other")
        return read_pairs(arguments.pairs, arguments.header)
    if not (arguments.positive and arguments.negative):
        raise ValueError("give a file of PAIRS, or --positive and --negative together")
    header = arguments.header
    return read_texts(arguments.positive, header), read_texts(arguments.negative, header)
