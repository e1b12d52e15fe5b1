"""``textguide methods``: what can be given as ``--guidance``."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any


def add(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "methods", help="list the guidance methods, or describe one", description="List the guidance methods."
    )
    parser.add_argument("name", nargs="?", help="describe this one with its fields")
    parser.add_argument(
        "--matrix", action="store_true", help="which method runs in which place, and why not where it does not"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--markdown", action="store_true", help="the table of the documentation")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List, or describe."""
    from ..guidance import Guidance, catalogue
    from ..guidance.spec import unknown

    found = catalogue.methods()
    if arguments.name is not None:
        found = [method for method in found if method["name"] == arguments.name]
        if not found:
            raise ValueError(unknown(arguments.name))
    if arguments.matrix:
        _print_matrix(arguments, [method["name"] for method in found])
        return 0
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False, indent=1, default=str))
    elif arguments.markdown:
        print(catalogue.markdown(), end="")
    elif arguments.name is not None:
        print(textwrap.dedent("    " + (Guidance.registry[arguments.name].__doc__ or "")).rstrip())
        print("\nAll fields, with their defaults:\n")
        for field in catalogue.described_fields(Guidance.registry[arguments.name]):
            head = f"  {field['name']}" + ("" if field["required"] else f" = {field['default']!r}")
            origin = f" (of {field['of']})" if field["of"] != Guidance.registry[arguments.name].__name__ else ""
            text = f"{field['text']}{origin}".strip()
            print(head)
            if text:
                print(textwrap.fill(text, 80, initial_indent="      ", subsequent_indent="      "))
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("name", no_wrap=True)
        table.add_column("arXiv", no_wrap=True)
        table.add_column("rule, and what it is worth a try for")
        for method in found:
            name = method["name"] + (" *" if method["experimental"] else "")
            table.add_row(name, method["paper"], f"{method['rule']}\n[dim]{method['helps']}[/dim]")
        console = Console()
        console.print(table)
        console.print("* experimental: the paper leaves something open, which `textguide methods NAME` says")
    return 0


def _print_matrix(arguments: argparse.Namespace, names: list[str]) -> None:
    from ..guidance import catalogue
    from ..guidance.places import PLACES

    rows = [row for row in catalogue.matrix() if row["method"] in names]
    if arguments.json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
    elif arguments.markdown:
        print(catalogue.matrix_markdown(), end="")
    else:
        from rich.console import Console
        from rich.table import Table

        # Narrow enough for a terminal of 80 columns.
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        numbers = catalogue.numbered_reasons(rows)
        for column in ("method", *(place.name for place in PLACES)):
            table.add_column(column, justify="left" if column == "method" else "center", no_wrap=True)
        for row in rows:
            cells = row["cells"].values()
            table.add_row(row["method"], *("✓" if cell is True else str(numbers[cell]) for cell in cells))
        console = Console()
        console.print(table)
        for reason, number in numbers.items():
            console.print(f"{number}. {reason}", soft_wrap=True)
