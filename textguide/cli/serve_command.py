"""``textguide serve``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .parser import COMMANDS, Parser

EPILOG = (
    "OPTIONS are those of vllm serve (textguide serve MODEL --help=all lists them). Clients send "
    'extra_body={"guidance": "cfg:scale=1.5"}, or any other guidance as JSON; see docs/serving.md. '
    "With --diffusion before MODEL, OPTIONS are those of textguide serve --diffusion MODEL --help, and clients "
    'send extra_body={"guidance": "acfg:scale=1.5", "steps": 16}; see docs/diffusion.md.'
)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "serve",
        help=COMMANDS["serve"],
        description="Start vLLM's OpenAI-compatible server with guidance, or a server for a masked diffusion model.",
        epilog=EPILOG,
    )
    parser.add_argument("--diffusion", action="store_true", help="MODEL is a masked diffusion model (no vLLM needed)")
    parser.add_argument("model", metavar="MODEL", help="smollm2, a folder, a GGUF file, or a name on a model hub")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="OPTIONS", help="options of vllm serve")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until interrupted."""
    if arguments.diffusion:
        return _canvases(arguments.model, arguments.options)
    from textguide.logits_processors.vllm_plugin import server

    parsed = server.parse(arguments.model, arguments.options)
    pages = {}
    if parsed.playground:
        from ..playground import launch

        pages["/playground"] = launch.mounted_page(arguments.model, parsed.host or "")
    server.serve(parsed, pages)
    return 0


def _canvases(model: str, options: Sequence[str]) -> int:
    from ..diffusion.serving import launch
    from ..serving.limits import Limits

    parser = Parser(prog="textguide serve --diffusion MODEL")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [%(default)s]")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one [%(default)s]")
    parser.add_argument(
        "--served-model-name", metavar="NAME", default=model, help="name of the model in requests [MODEL]"
    )
    parser.add_argument("--api-key", metavar="KEY", help="bearer token that clients have to send")
    parser.add_argument(
        "--allowed-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a name under which clients reach the server, * for any [the names of this machine if --host is the "
        "loopback, otherwise any]",
    )
    parser.add_argument("--device", help="device of the model [a GPU if there is one]")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint")
    parser.add_argument(
        "--extra-model",
        metavar="NAME=MODEL",
        action="append",
        default=[],
        help="another denoiser, which branches may run",
    )
    parser.add_argument(
        "--allow",
        metavar="NAME",
        action="append",
        default=[],
        help="a classifier that requests may name, in addition to the bundled ones",
    )
    parser.add_argument("--max-runs", type=int, default=32, help="requests that run together [%(default)s]")
    parser.add_argument("--max-waiting", type=int, default=1000, help="requests that may wait [%(default)s]")
    parser.add_argument("--max-canvas", type=int, default=1024, help="most masks of a row [%(default)s]")
    parser.add_argument("--max-prompt", type=int, default=4096, help="most tokens of a prompt [%(default)s]")
    parser.add_argument("--max-particles", type=int, default=16, help="most particles, and largest n [%(default)s]")
    parser.add_argument(
        "--constraint-seconds",
        type=float,
        metavar="S",
        default=Limits.constraint_seconds,
        help="how long the constraint of a request may take to compile [%(default)s]",
    )
    parser.add_argument(
        "--constraint-bytes",
        type=int,
        metavar="N",
        default=Limits.constraint_bytes,
        help="size of the constraint of a request [%(default)s]",
    )
    parsed = parser.parse_args(list(options))
    further = {}
    for one in parsed.extra_model:
        name, found, source = one.partition("=")
        if not name or not found or not source:
            parser.error(f"--extra-model {one}: write NAME=MODEL")
        further[name] = source
    for name in ("max_runs", "max_canvas", "max_prompt", "max_particles", "constraint_bytes"):
        if getattr(parsed, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(parsed, name)}: give 1 or more")
    if not 0 < parsed.constraint_seconds < float("inf"):
        parser.error(f"--constraint-seconds {parsed.constraint_seconds}: give a number above 0")
    launch.serve_canvases(model, further, parsed)
    return 0
