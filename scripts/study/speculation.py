"""How often rounding changes a text under speculation, and what sampling accepts: LAMBADA's passages, continued.

Every passage is continued with and without speculation, greedily and by sampling with one seed; where the two differ,
the gap in log-probability between the two tokens is reported::

    python scripts/study/speculation.py --data DATA --json docs/results/speculation-ties.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import transformers
from rich.progress import track

import textguide
from textguide import CFG


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds lambada/lambada_test.jsonl")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--new", type=int, default=48, help="tokens generated")
    parser.add_argument("--scale", type=float, default=1.5)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    transformers.utils.logging.set_verbosity_error()
    model, tokenizer = textguide.load(arguments.model)
    lines = (arguments.data / "lambada" / "lambada_test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[: arguments.rows]]
    found = {}
    for name, sampling in (("greedy", {}), ("sampled", {"temperature": arguments.temperature, "seed": 0, "top_k": 0})):
        different, steps, passes, drafted, accepted = [], 0, 0, 0, 0
        for number, text in enumerate(track(texts, description=name, transient=True)):
            options: dict[str, Any] = {"max_new_tokens": arguments.new, "min_new_tokens": arguments.new, **sampling}
            plain = textguide.generate(model, tokenizer, text, CFG(arguments.scale), **options)
            fast = textguide.generate(
                model, tokenizer, text, CFG(arguments.scale), speculation="prompt-lookup", **options
            )
            if plain.new_tokens != fast.new_tokens:
                pairs = zip(plain.new_tokens[0], fast.new_tokens[0], strict=True)
                place = next(n for n, (one, other) in enumerate(pairs) if one != other)
                gap = abs(float(plain.log_probs[0, place] - fast.log_probs[0, place]))
                different.append({"row": number, "token": place, "gap": gap})
            report = fast.speculation
            assert report is not None
            steps, passes = steps + report.steps, passes + report.passes
            drafted, accepted = drafted + report.drafted, accepted + report.accepted
        found[name] = {
            "texts": len(texts),
            "tokens": len(texts) * arguments.new,
            "different": different,
            "tokens_per_pass": steps / passes,
            "acceptance": accepted / max(1, drafted),
        }
        print(name, json.dumps(found[name]))
    if arguments.json:
        settings = {key: str(value) for key, value in vars(arguments).items() if key not in ("data", "json")}
        arguments.json.write_text(json.dumps({"settings": settings, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
