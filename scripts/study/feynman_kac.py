"""How far the weights of corrected guidance spread with the length of the texts, with and without resampling.

python scripts/study/feynman_kac.py --json docs/results/feynman-kac.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import transformers

import textguide
from textguide import CFG, FeynmanKac

PROMPTS = [
    "The dragon flew over Paris, France, and",
    "My grandmother always told me that",
    "In the summer of 1914 the city",
    "Q: What is the capital of France? A:",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--scale", type=float, default=1.5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    transformers.utils.logging.set_verbosity_error()
    model, tokenizer = textguide.load(arguments.model)
    rows = []
    for length in arguments.lengths:
        for threshold in (0.0, 0.5):
            guidance = [CFG(arguments.scale), FeynmanKac(arguments.particles, threshold)]
            outs = [
                textguide.generate(model, tokenizer, PROMPTS, guidance, max_new_tokens=length, seed=seed)
                for seed in range(arguments.seeds)
            ]
            sizes = [float(size) for out in outs for size in out.ess]  # type: ignore[union-attr]
            evidence = [out.log_evidence.tolist() for out in outs]  # type: ignore[union-attr]
            rows.append(
                {
                    "tokens": length,
                    "ess_threshold": threshold,
                    "ess": statistics.mean(sizes),
                    "log_evidence_spread": statistics.mean(
                        statistics.stdev(runs) for runs in zip(*evidence, strict=True)
                    ),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        settings = {key: str(value) for key, value in vars(arguments).items() if key != "json"}
        arguments.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
