"""``textguide playground``."""

from __future__ import annotations

import argparse
import threading
import webbrowser
from typing import Any

from . import options
from .parser import add_command


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "playground",
        description="Start a web page on which guidance can be tried, explained and compared.",
        examples=("playground --open", "playground --model FOLDER --host 0.0.0.0 --port 8080"),
    )
    options.add_model(parser)
    options.add_extra_model(parser)
    group = parser.add_argument_group("server")
    group.add_argument("--port", type=int, default=7860, help="0: a free one [%(default)s]")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on; others may then use it [%(default)s]")
    group.add_argument("--open", action="store_true", help="open the page in a browser")
    group.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NAME",
        help="a classifier, reward, value head, vector or constraint that visitors may name, such as a folder or "
        "python:MODULE:NAME; may be repeated",
    )
    group.add_argument("--runs", type=int, default=6, help="runs at once, over all visitors [%(default)s]")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from dataclasses import replace

    from ..playground import launch
    from ..serving.limits import Limits
    from ..serving.rules import Rules
    from ..serving.sockets import address, listen

    if not 0 <= arguments.port < 65536:
        raise ValueError(f"--port {arguments.port} must lie between 0 and 65535")
    if arguments.runs < 1:
        raise ValueError(f"--runs {arguments.runs} must be 1 or more")
    options.extra_model_names(arguments)
    with listen(arguments.host, arguments.port) as sock:
        page = address(arguments.host, sock)
        print(f"loading {arguments.model}", flush=True)
        model, tokenizer = options.load(arguments)
        models = launch.load_models(arguments.model, (model, tokenizer), options.extra_models(arguments, model))
        sock.listen(128)  # a browser that comes before the server is up waits, and is not turned away
        rules = Rules(replace(Limits(), runs=arguments.runs), tuple(arguments.allow))
        print(f"the playground is at {page} (Ctrl-C ends it)", flush=True)
        if arguments.open:
            threading.Timer(0.5, webbrowser.open, (page,)).start()
        launch.serve(models, rules, arguments.host, sock)
    return 0
