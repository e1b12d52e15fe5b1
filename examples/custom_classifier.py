"""Steer with your own classifier: ``python examples/custom_classifier.py --weight 4``.

Anything that returns log p(class | text) can be used. This one counts short words; a trained model works the same way.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

import textguide
from textguide import CAIF
from textguide.classifiers import FunctionClassifier


def plainness(texts: list[str]) -> torch.Tensor:
    """p(ornate) and p(plain) of each text, from the share of words with at most five letters."""
    shares = [[len(word) <= 5 for word in text.split()] or [True] for text in texts]
    plain = torch.tensor([sum(share) / len(share) for share in shares]).clamp(0.01, 0.99)
    return torch.stack([1 - plain, plain], dim=1)


def main(argv: Sequence[str] | None = None) -> dict[str, str]:
    """Generate one text for each class, and return them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="The old library was")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--weight", type=float, default=10.0)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    arguments = parser.parse_args(argv)
    model, tokenizer = textguide.load(arguments.model)
    classifier = FunctionClassifier(plainness, ("ornate", "plain"), probabilities=True)
    texts = {}
    for target in ("ornate", "plain"):
        guidance = CAIF(classifier, target, arguments.weight, top_k=20, include_prompt=False)
        out = textguide.generate(model, tokenizer, arguments.prompt, guidance, max_new_tokens=arguments.max_new_tokens)
        texts[target] = out.texts[0]
        print(f"{target}: {arguments.prompt}{out.texts[0]}")
    return texts


if __name__ == "__main__":
    main()
