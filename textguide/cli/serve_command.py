"""``textguide serve``: vLLM's OpenAI-compatible server with guidance."""

from __future__ import annotations

import argparse
from typing import Any

EPILOG = (
    "OPTIONS are those of vllm serve (textguide serve MODEL --help=all lists them). Clients send "
    'extra_body={"vllm_xargs": {"guidance": "cfg:scale=1.5"}}, or any other guidance as JSON; see docs/serving.md.'
)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "serve", help="serve a model over HTTP, with guidance", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("model", metavar="MODEL", help="smollm2, a folder, a GGUF file, or a name on a model hub")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="OPTIONS", help="options of vllm serve")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from textguide.logits_processors.vllm_plugin import server

    parsed = server.parse(arguments.model, arguments.options)
    pages = {}
    if parsed.playground:
        from ..playground import serving

        pages["/playground"] = serving.beside(arguments.model, parsed.host or "")
    server.serve(parsed, pages)
    return 0
