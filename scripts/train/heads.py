"""Train the two bundled heads, the other sentiment classifiers of the package, from SST-2.

    TEXTGUIDE_DATA=DATA python scripts/train/heads.py minilm    # on the sentence encoder of the extra `sentiment`
    TEXTGUIDE_DATA=DATA python scripts/train/heads.py smollm2   # on the bundled language model's hidden states

Embeddings are computed once; the strength of the penalty is chosen on held-out sentences, as in sentiment.py, and the
published test sentences are read once, at the end.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import asdict
from pathlib import Path

from rich.progress import Progress
from sentiment import HOME, LABELS, best_strength, split, sst2

import textguide
from textguide.classifiers import Classifier
from textguide.classifiers.causal_head import Head, HeadClassifier, last_states
from textguide.classifiers.embedding import EmbeddingClassifier, load_encoder
from textguide.classifiers.training import Examples, evaluate, train_head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["minilm", "smollm2"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=20000, help="training phrases, drawn at random")
    parser.add_argument("--held-out", type=int, default=800)
    arguments = parser.parse_args()
    rest, outside = split(sst2("train"), arguments.held_out)
    chosen = random.Random(1).sample(range(len(rest.texts)), min(arguments.rows, len(rest.texts)))
    inside = Examples(tuple(rest.texts[i] for i in chosen), tuple(rest.labels[i] for i in chosen))

    if arguments.kind == "minilm":
        encoder = load_encoder("minilm")
        vectors = encoder(inside.texts)

        def make(weights, bias):
            return EmbeddingClassifier(encoder, weights, bias, LABELS)

    else:
        model, tokenizer = textguide.load("smollm2")
        with Progress() as bar:
            task = bar.add_task("reading", total=len(inside.texts))
            vectors = last_states(model, tokenizer, inside.texts, lambda n: bar.advance(task, n))

        def make(weights, bias):
            return HeadClassifier(model, tokenizer, Head(weights, bias), LABELS, model_name="smollm2")

    def fit(strength: float) -> Classifier:
        return make(*train_head(vectors, inside, LABELS, strength))

    best = best_strength(fit, (1e-4, 1e-3, 1e-2, 1e-1, 1.0), outside)
    classifier = fit(best)
    result = evaluate(classifier, sst2("test"))
    print(f"strength {best}: test {result}")
    report = {
        "data": f"SST-2, {len(inside.texts)} phrases of the training split",
        "strength": best,
        "test": asdict(result),
    }
    print(classifier.save(arguments.out or HOME.with_name(f"sentiment-{arguments.kind}"), report))


if __name__ == "__main__":
    main()
