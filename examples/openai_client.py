"""An OpenAI client for ``textguide serve smollm2 --port 8000``: ``python examples/openai_client.py``.

Requires ``pip install openai``. Guidance is passed in ``extra_body``, and ``kv_transfer_params`` of the response
reports whether the text is guided, and what guidance changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import openai


def ask(client: Any, model: str, prompt: str, guidance: str | None, max_tokens: int = 24) -> tuple[str, Any]:
    """Return the text and the report of one completion. With ``guidance`` None, decoding is plain."""
    extra = {} if guidance is None else {"extra_body": {"guidance": guidance}}
    answer = client.completions.create(model=model, prompt=prompt, max_tokens=max_tokens, temperature=0, **extra)
    return answer.choices[0].text, getattr(answer, "kv_transfer_params", None)


def main(argv: Sequence[str] | None = None) -> None:
    """Send the same prompt with and without guidance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="The dragon flew over Paris, France,")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--guidance", default="cfg:scale=1.5")
    arguments = parser.parse_args(argv)
    client = openai.OpenAI(base_url=arguments.url, api_key="none")
    for guidance in (None, arguments.guidance):
        text, report = ask(client, arguments.model, arguments.prompt, guidance)
        print(f"{guidance or 'plain'}: {text!r} {report or ''}")


if __name__ == "__main__":
    main()
