"""``textguide export-generate``."""

from __future__ import annotations

import argparse
from typing import Any

from . import options
from .parser import add_command


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "export-generate",
        description="Write a method as a folder for transformers' model.generate(custom_generate=…): "
        "custom_generate/generate.py, its requirements and a card, ready to be pushed to a hub.",
        examples=("export-generate cfg:scale=1.5 --out my-cfg",),
    )
    parser.add_argument(
        "method",
        metavar="METHOD",
        help="as for --guidance: cfg:scale=1.5, apg, a JSON file; textguide methods lists them",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    options.add_extra_model(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the folder, and print the call that uses it."""
    from ..engine.exporting import export_generate
    from ..guidance import as_guidance

    models = options.extra_model_names(arguments)
    folder = export_generate(as_guidance(arguments.method), arguments.out, models=models, overwrite=arguments.overwrite)
    print(f"model.generate(**inputs, custom_generate={str(folder)!r}, trust_remote_code=True, tokenizer=tokenizer)")
    return 0
