"""Train the sentiment classifier that the package carries, from SST-2.

    TEXTGUIDE_DATA=DATA python scripts/train/sentiment.py

The strength of the penalty is chosen on whole sentences of the training set, all of whose phrases are held out. The
published test sentences are not used for that.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from textguide.classifiers import Classifier
from textguide.classifiers.training import Examples, evaluate, read_examples, train_linear

LABELS = ("negative", "positive")
HOME = Path(__file__).parents[2] / "textguide" / "classifiers" / "data" / "sentiment"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HOME)
    parser.add_argument("--held-out", type=int, default=800, help="sentences on which the penalty is chosen")
    arguments = parser.parse_args()
    train, test = sst2("train"), sst2("test")
    inside, outside = split(train, arguments.held_out)
    print(f"{len(inside.texts)} phrases, {len(outside.texts)} held-out sentences")
    strengths = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    best = best_strength(lambda strength: train_linear(inside, labels=LABELS, strength=strength), strengths, outside)
    classifier = train_linear(train, labels=LABELS, strength=best, name="sentiment")
    result = evaluate(classifier, test)
    print(f"strength {best}: test {result}")
    report = {"data": "SST-2, training split", "strength": best, "test": asdict(result)}
    print(classifier.save(arguments.out, report))


def sst2(part: str) -> Examples:
    """The published examples of SST-2; ``part`` is ``train`` or ``test``."""
    path = Path(os.environ["TEXTGUIDE_DATA"]) / "sst2" / f"{part}.tsv"
    return read_examples(path, header=True, names=LABELS)


def best_strength(fit: Callable[[float], Classifier], strengths: Iterable[float], held_out: Examples) -> float:
    """The strength of the penalty whose classifier has the smallest log loss on held-out examples."""
    losses = {}
    for strength in strengths:
        report = evaluate(fit(strength), held_out)
        losses[strength] = report.log_loss
        print(
            f"strength {strength}: held-out accuracy {report.accuracy:.4f}, log loss {report.log_loss:.4f}", flush=True
        )
    return min(losses, key=losses.__getitem__)


def split(examples: Examples, n: int) -> tuple[Examples, Examples]:
    """``n`` sentences, and the rest without any phrase that occurs in one of them."""
    pairs = list(zip(examples.texts, examples.labels, strict=True))
    sentences = [pair for pair in pairs if pair[0].rstrip().endswith(" .") and pair[0].count(" ") >= 8]
    chosen = random.Random(0).sample(sentences, n)
    joined = "\n".join(text for text, _ in chosen)
    rest = [pair for pair in pairs if pair[0].strip() not in joined]
    return tuple(Examples(*zip(*part, strict=True)) for part in (rest, chosen))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
