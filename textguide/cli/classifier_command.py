"""``textguide classifier``."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from ..support import files
from . import options
from .parser import add_command
from .progress import progress_bar

KINDS = ("linear", "embedding", "causal")


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "classifier",
        description="Train a classifier on labelled texts, or classify texts.",
        examples=(
            "classifier train reviews.tsv --out FOLDER",
            'classifier score FOLDER "What a film" --json',
            'generate "The film was" --classifier FOLDER --target good',
        ),
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="{train,score}")

    train = actions.add_parser("train", help="fit a classifier on labelled texts and save it")
    train.add_argument("data", help="a text and its label on each line, with a tab between them (or a .csv)")
    train.add_argument("--out", required=True, metavar="FOLDER", help="folder of the classifier")
    train.add_argument("--overwrite", action="store_true", help="replace the content of that folder")
    train.add_argument("--kind", choices=KINDS, default="linear", help="[%(default)s]")
    train.add_argument("--validation", metavar="FILE", help="labelled texts to evaluate on [a tenth of DATA]")
    train.add_argument("--text-column", default="0", help="number from 0, or name in the header [%(default)s]")
    train.add_argument("--label-column", default="1", help="number from 0, or name in the header [%(default)s]")
    train.add_argument(
        "--header", action=argparse.BooleanOptionalAction, help="the first line has the column names [detected]"
    )
    train.add_argument("--labels", help="names of the classes in sorted order, separated by commas")
    train.add_argument("--strength", type=float, default=0.1, help="inverse of the L2 penalty [%(default)s]")
    train.add_argument("--encoder", default="minilm", help="embedding: minilm, or an encoder's folder [%(default)s]")
    train.add_argument("--limit", type=int, help="use this many examples, drawn at random")
    train.add_argument("--seed", type=int, default=0, help="for --limit and the tenth [%(default)s]")
    train.add_argument("--json", action="store_true", help="print everything as JSON")
    options.add_model(train)
    train.set_defaults(run=run_train)

    score = actions.add_parser("score", help="print the probabilities of the classes for texts")
    score.add_argument(
        "classifier", metavar="SPEC", help="sentiment, a saved folder, profanity, gzip:FILE.tsv, hf:NAME …"
    )
    score.add_argument("prompt", nargs="*", metavar="TEXT", help="texts [--file, or standard input]")
    score.add_argument("--file", help="one text per line; - reads standard input")
    score.add_argument("--json", action="store_true", help="print one JSON object per text")
    options.add_model(score)
    score.set_defaults(run=run_score)


def run_train(arguments: argparse.Namespace) -> int:
    """Fit, evaluate, save, and report the accuracy."""
    from ..classifiers import evaluate

    out = files.vacant(arguments.out, arguments.overwrite)
    if not arguments.strength > 0:
        raise ValueError(f"--strength {arguments.strength} must be above 0")
    examples, held_out = _examples(arguments)
    classifier = _fit(arguments, examples)
    report = asdict(evaluate(classifier, held_out))
    report["measured_on"] = arguments.validation or "a tenth of the examples"
    report["trained_on"] = len(examples.texts)
    classifier.save(out, report)
    if arguments.json:
        print(json.dumps({"out": str(out), "kind": arguments.kind, "labels": list(classifier.labels), **report}))
    else:
        _show(report)
        print(f"wrote {out}")
    return 0


def run_score(arguments: argparse.Namespace) -> int:
    """Print the probability of every class for each text."""
    from ..classifiers import resolve

    prompts = options.read_prompts(arguments)
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ValueError(f"{prompt!r} is not a text; classifiers read plain texts")
    needs_model = arguments.classifier.startswith("zero-shot:")
    model, tokenizer = options.load(arguments) if needs_model else (None, None)
    classifier = resolve(arguments.classifier, model, tokenizer)
    rows = classifier.log_prob(prompts).exp().tolist()
    for text, row in zip(prompts, rows, strict=True):
        if arguments.json:
            print(json.dumps({"text": text, "probabilities": dict(zip(classifier.labels, row, strict=True))}))
        else:
            distribution = "  ".join(f"{label} {p:.4f}" for label, p in zip(classifier.labels, row, strict=True))
            print(f"{distribution}\t{text}")
    return 0


def _examples(arguments: argparse.Namespace) -> tuple[Any, Any]:
    import random

    from ..classifiers import Examples, read_examples

    names = [name.strip() for name in arguments.labels.split(",")] if arguments.labels else None
    settings = {
        "text_column": _column(arguments.text_column),
        "label_column": _column(arguments.label_column),
        "header": arguments.header,
        "names": names,
    }
    examples = read_examples(arguments.data, **settings)
    if arguments.limit is not None and arguments.limit < 2:
        raise ValueError(f"--limit {arguments.limit} must be 2 or more")
    order = random.Random(arguments.seed).sample(range(len(examples.texts)), len(examples.texts))
    order = order[: arguments.limit]

    def pick(indices: list[int]) -> Any:
        return Examples(tuple(examples.texts[i] for i in indices), tuple(examples.labels[i] for i in indices))

    if arguments.validation:
        return pick(order), read_examples(arguments.validation, **settings)
    tenth = len(order) // 10
    if not tenth:
        raise ValueError(
            f"{arguments.data} has {len(order)} examples, too few to hold some out; name a --validation file"
        )
    return pick(order[tenth:]), pick(order[:tenth])


def _column(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _fit(arguments: argparse.Namespace, examples: Any) -> Any:
    from ..classifiers import load_encoder, train_causal, train_embedding, train_linear

    strength = arguments.strength
    if arguments.kind == "linear":
        return train_linear(examples, strength=strength)
    if arguments.kind == "embedding":
        return train_embedding(examples, load_encoder(arguments.encoder, arguments.device), strength=strength)
    model, tokenizer = options.load(arguments)
    with progress_bar() as bar:
        task = bar.add_task("reading", total=len(examples.texts))
        return train_causal(
            examples,
            model,
            tokenizer,
            model_name=arguments.model,
            strength=strength,
            progress=lambda texts: bar.advance(task, texts),
        )


def _show(report: dict[str, Any]) -> None:
    print(f"accuracy {report['accuracy']:.4f} on {report['n']} texts ({report['measured_on']})")
    print(f"log loss {report['log_loss']:.4f} nats, expected calibration error {report['ece']:.4f}")
    width = max(len(label) for label in report["classes"])
    print(f"{'':{width}}  precision  recall      F1  texts")
    for label, row in report["classes"].items():
        print(f"{label:{width}}  {row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}  {row['n']:5d}")
