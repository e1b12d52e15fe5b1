"""``textguide export-generate``: a method as a folder for transformers' ``model.generate(custom_generate=…)``."""

from __future__ import annotations

import argparse
from typing import Any

from . import options


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "export-generate",
        help="write a method as a folder that transformers' generate loads",
        description="Write custom_generate/generate.py, its requirements and a card, ready to be pushed to a hub.",
    )
    parser.add_argument(
        "method",
        metavar="METHOD",
        help="as for --guidance: cfg:scale=1.5, apg, a JSON file; `textguide methods` lists them",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder")
    parser.add_argument("--overwrite", action="store_true", help="replace files that stand there")
    options.add_extra_model(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the folder, and say how it is used."""
    from ..engine.exporting import export_generate
    from ..guidance import as_guidance

    models = options.extra_model_names(arguments)
    folder = export_generate(as_guidance(arguments.method), arguments.out, models=models, overwrite=arguments.overwrite)
    print(f"model.generate(**inputs, custom_generate={str(folder)!r}, trust_remote_code=True, tokenizer=tokenizer)")
    return 0
