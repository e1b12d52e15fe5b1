"""A chat in the terminal: ``python examples/chat.py --system "You are a pirate." --scale 1.5``; an empty line ends it.

Guidance moves towards the system prompt and away from ``--negative-system``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

import textguide
from textguide import CFG


def main(argv: Sequence[str] | None = None, lines: Iterable[str] = sys.stdin) -> list[dict[str, str]]:
    """Answer each line of ``lines``, and return the chat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--system", default="You are a pirate. Answer in one sentence.")
    parser.add_argument("--negative-system", default="You are a helpful assistant.")
    parser.add_argument("--scale", type=float, default=1.5)
    parser.add_argument("--max-new-tokens", type=int, default=60)
    arguments = parser.parse_args(argv)
    model, tokenizer = textguide.load(arguments.model)
    guidance = CFG(arguments.scale, negative_system=arguments.negative_system)
    chat = [{"role": "system", "content": arguments.system}]
    for line in lines:
        if not line.strip():
            break
        chat.append({"role": "user", "content": line.strip()})
        answer = ""
        for chunk in textguide.stream(
            model, tokenizer, chat, guidance, max_new_tokens=arguments.max_new_tokens, repetition_penalty=1.1
        ):
            print(chunk.text, end="", flush=True)
            answer += chunk.text
        print()
        chat.append({"role": "assistant", "content": answer.strip()})
    return chat


if __name__ == "__main__":
    main()
