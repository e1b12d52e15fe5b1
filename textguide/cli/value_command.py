"""``textguide value``."""

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
    parser = add_command(
        commands,
        "value",
        description="Train a head that predicts the reward of a text from its beginning, for ValueGuidance.",
        examples=(
            "value train prompts.txt --classifier sentiment --target positive --out FOLDER",
            "value train prompts.txt --reward FOLDER --out FOLDER --rollouts 16",
            'generate "The film was" --guidance value:head=FOLDER',
        ),
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="{train}")
    train = actions.add_parser("train", help="generate texts, compute their rewards, and fit a head to their prefixes")
    train.add_argument("prompts", metavar="PROMPTS", help="a file with one prompt per line")
    train.add_argument("--out", required=True, metavar="FOLDER", help="folder of the head")
    train.add_argument("--overwrite", action="store_true", help="replace the content of that folder")
    train.add_argument("--reward", metavar="NAME", help="a folder, hf:NAME or python:MODULE:NAME, as for Reward")
    train.add_argument("--classifier", metavar="NAME", help="instead of --reward: sentiment, a folder… as for CAIF")
    train.add_argument("--target", metavar="LABEL", help="the class whose probability is the reward")
    train.add_argument("--rollouts", type=int, default=8, help="texts per prompt [%(default)s]")
    train.add_argument("--max-new-tokens", type=int, default=64, help="longest text [%(default)s]")
    train.add_argument("--classify-continuation", action="store_true", help="hide the prompt from the classifier")
    train.add_argument("--strength", type=float, default=0.1, help="inverse of the L2 penalty [%(default)s]")
    train.add_argument("--batch-size", type=int, default=16, help="texts per batch [%(default)s]")
    train.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    train.add_argument("--json", action="store_true", help="print everything as JSON")
    options.add_model(train)
    train.set_defaults(run=run_train)


def run_train(arguments: argparse.Namespace) -> int:
    """Generate texts, fit and save the head, and report how well it predicts."""
    from .. import value

    _check(arguments)
    out = files.vacant(arguments.out, arguments.overwrite)
    prompts = options.read_lines(arguments.prompts, "PROMPTS", "a prompt")
    model, tokenizer = options.load(arguments)
    with progress_bar() as bar:
        total = len(prompts) * arguments.rollouts
        writing = bar.add_task("writing", total=total)
        reading = bar.add_task("reading", total=total)
        texts = value.rollouts(
            model,
            tokenizer,
            prompts,
            reward=arguments.reward,
            classifier=arguments.classifier,
            target=arguments.target,
            number=arguments.rollouts,
            max_new_tokens=arguments.max_new_tokens,
            include_prompt=not arguments.classify_continuation,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            progress=lambda count: bar.advance(writing, count),
        )
        head, report = value.train(
            model,
            tokenizer,
            texts,
            model_name=arguments.model,
            strength=arguments.strength,
            batch_size=arguments.batch_size,
            progress=lambda count: bar.advance(reading, count),
        )
    head.save(out, report)
    if arguments.json:
        print(json.dumps({"out": str(out), "kind": head.kind, **report}))
        return 0
    print(f"{report['texts']} texts, {report['prefixes']} prefixes, mean reward {report['mean']:.4f}")
    if report["explained"] is not None:
        shares = ", ".join(f"{share:.3f} at the {name} token" for name, share in report["explained"].items())
        print(f"explained share of the variance, on the last tenth: {shares}")
    print(f"wrote {out}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if (arguments.reward is None) == (arguments.classifier is None):
        raise ValueError("give --reward, or --classifier with --target, for the reward of a text")
    if (arguments.classifier is None) != (arguments.target is None):
        raise ValueError("--classifier and --target belong together; give both")
    for name in ("rollouts", "max_new_tokens", "batch_size"):
        whole_number(name, getattr(arguments, name), 1)
