"""Train the bundled token prior of SmolLM2 from the contexts of 40 passages of LAMBADA, without their answers.

TEXTGUIDE_DATA=DATA python scripts/train/prior.py
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch

import textguide
from textguide.guidance.priors import BUNDLED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=BUNDLED["smollm2"])
    parser.add_argument("--texts", type=int, default=40)
    arguments = parser.parse_args()
    data = Path(os.environ["TEXTGUIDE_DATA"]) / "lambada" / "lambada_test.jsonl"
    lines = data.read_text(encoding="utf-8").splitlines()[: arguments.texts]
    contexts = [json.loads(line)["text"].rsplit(" ", 1)[0] for line in lines]
    model, tokenizer = textguide.load("smollm2")
    prior = textguide.estimate_prior(model, tokenizer, contexts, name="smollm2").save(arguments.out, torch.float16)
    print(f"{arguments.out}: {prior.texts} texts, {prior.tokens} positions, {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
