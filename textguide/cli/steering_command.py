"""``textguide steering``: train a vector that ``Steering`` adds inside a model."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..support import files
from . import options


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("steering", help="train a steering vector", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="{train}")
    train = actions.add_parser("train", help="take the difference of means over contrasting texts, and save it")
    train.add_argument("pairs", nargs="?", help="a positive text, a tab and a negative one on each line")
    train.add_argument("--positive", metavar="FILE", help="in place of PAIRS: texts to steer towards, one a line")
    train.add_argument("--negative", metavar="FILE", help="texts to steer away from, one a line")
    train.add_argument("--out", required=True, metavar="FOLDER", help="where the vector goes")
    train.add_argument("--overwrite", action="store_true", help="replace what is in that folder")
    train.add_argument("--batch-size", type=int, default=16, help="texts that are read at once [%(default)s]")
    train.add_argument("--json", action="store_true", help="print everything as JSON")
    options.add_model(train)
    train.set_defaults(run=run_train)


def run_train(arguments: argparse.Namespace) -> int:
    """Read the texts, save the vector, and say how long it is."""
    from rich.console import Console
    from rich.progress import Progress

    from .. import steering

    out = files.vacant(arguments.out, arguments.overwrite)
    positive, negative = _texts(arguments)
    model, tokenizer = options.load(arguments)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=len(positive) + len(negative))
        vector = steering.train(
            model, tokenizer, positive, negative, batch_size=arguments.batch_size, name=arguments.model,
            progress=lambda n: bar.advance(task, n),
        )  # fmt: skip
    vector = vector.save(out)
    norms = [round(norm, 4) for norm in vector.directions.norm(dim=-1).tolist()]
    found = {
        "out": str(out), "fingerprint": vector.fingerprint, "model": vector.model, "positive": len(positive),
        "negative": len(negative), "norms": norms,
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(found))
    else:
        print(f"{len(positive)} texts against {len(negative)}, {len(norms)} layers")
        print(f"length of the vector from {norms[0]:g} behind the first layer to {norms[-1]:g} behind the last")
        print(f"wrote {out}")
    return 0


def _texts(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    from ..steering import read_pairs, read_texts

    files = (arguments.positive, arguments.negative)
    if arguments.pairs is not None:
        if any(files):
            raise ValueError("PAIRS excludes --positive and --negative; give one or the other")
        return read_pairs(arguments.pairs)
    if not all(files):
        raise ValueError("give a file of PAIRS, or --positive and --negative together")
    return read_texts(files[0]), read_texts(files[1])
