"""``textguide value``: train a head that says what a text will be worth, for ``ValueGuidance``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..support import files
from . import options


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("value", help="train a value head on a model's rollouts", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="{train}")
    train = actions.add_parser("train", help="let the model write, judge the texts, and fit a head on their beginnings")
    train.add_argument("prompts", metavar="PROMPTS", help="a file with a prompt on each line")
    train.add_argument("--out", required=True, metavar="FOLDER", help="where the head goes")
    train.add_argument("--overwrite", action="store_true", help="replace what is in that folder")
    train.add_argument("--reward", metavar="NAME", help="a folder, hf:NAME or python:MODULE:NAME, as for Reward")
    train.add_argument("--classifier", metavar="NAME", help="in place of it: sentiment, a folder… as for CAIF")
    train.add_argument("--target", metavar="LABEL", help="the class whose probability a text is worth")
    train.add_argument("--rollouts", type=int, default=8, help="texts a prompt [%(default)s]")
    train.add_argument("--max-new-tokens", type=int, default=64, help="where they are cut off [%(default)s]")
    train.add_argument("--classify-continuation", action="store_true", help="the prompt is not judged")
    train.add_argument("--strength", type=float, default=0.1, help="inverse of the L2 penalty [%(default)s]")
    train.add_argument("--batch-size", type=int, default=16, help="texts written and read at once [%(default)s]")
    train.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    train.add_argument("--json", action="store_true", help="print everything as JSON")
    options.add_model(train)
    train.set_defaults(run=run_train)


def run_train(arguments: argparse.Namespace) -> int:
    """Write, judge, fit, save, and say how well the head foresees."""
    from rich.console import Console
    from rich.progress import Progress

    from .. import value

    if (arguments.reward is None) == (arguments.classifier is None):
        raise ValueError("give --reward, or --classifier with --target, to say what a text is worth")
    if (arguments.classifier is None) != (arguments.target is None):
        raise ValueError("--classifier and --target belong together; give both")
    out = files.vacant(arguments.out, arguments.overwrite)
    try:
        lines = Path(arguments.prompts).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{arguments.prompts} cannot be read ({error.strerror}); check the path") from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{arguments.prompts} is empty; write a prompt on each line")
    model, tokenizer = options.load(arguments)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        total = len(prompts) * arguments.rollouts
        writing, reading = bar.add_task("writing", total=total), bar.add_task("reading", total=total)
        found = value.rollouts(
            model, tokenizer, prompts, reward=arguments.reward, classifier=arguments.classifier,
            target=arguments.target, number=arguments.rollouts, max_new_tokens=arguments.max_new_tokens,
            include_prompt=not arguments.classify_continuation, batch_size=arguments.batch_size, seed=arguments.seed,
            progress=lambda n: bar.advance(writing, n),
        )  # fmt: skip
        head, report = value.train(
            model, tokenizer, found, model_name=arguments.model, strength=arguments.strength,
            batch_size=arguments.batch_size, progress=lambda n: bar.advance(reading, n),
        )  # fmt: skip
    head.save(out, report)
    if arguments.json:
        print(json.dumps({"out": str(out), "kind": head.kind, **report}))
    else:
        print(f"{report['texts']} texts, {report['prefixes']} prefixes, mean reward {report['mean']:.4f}")
        if report["explained"] is not None:
            shown = ", ".join(f"{share:.3f} at the {name} token" for name, share in report["explained"].items())
            print(f"share of the variance that the head foresees, on the last tenth: {shown}")
        print(f"wrote {out}")
    return 0
