"""transformers' ``pipeline`` with guidance: ``python examples/pipeline.py "The dragon flew over" --scale 1.5``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from transformers import pipeline

import textguide
from textguide import CFG


def main(argv: Sequence[str] | None = None) -> None:
    """Generate one continuation without guidance and one with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="The dragon flew over Paris, France,")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--scale", type=float, default=1.5)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    arguments = parser.parse_args(argv)
    model, tokenizer = textguide.load(arguments.model)
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {"max_new_tokens": arguments.max_new_tokens, "do_sample": False, "return_full_text": False}
    guided = textguide.guided_decoding(CFG(arguments.scale))
    for name, more in (("plain", {}), (f"γ = {arguments.scale:g}", {"custom_generate": guided})):
        print(f"{name}: {write(arguments.prompt, **options, **more)[0]['generated_text']!r}")
    print(guided.effect)


if __name__ == "__main__":
    main()
