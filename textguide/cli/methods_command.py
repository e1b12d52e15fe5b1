"""``textguide methods``."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

from .parser import add_command


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "methods",
        description="List the methods for --guidance, or describe one.",
        examples=("methods", "methods apg", "methods --matrix"),
    )
    parser.add_argument("name", nargs="?", help="describe this method and its fields")
    parser.add_argument("--matrix", action="store_true", help="where each method works, with the reason if it does not")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--markdown", action="store_true", help="print the table of the documentation")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the list, the matrix, or one method."""
    from ..guidance import catalogue
    from ..guidance.spec import unknown

    methods = catalogue.methods()
    if arguments.name is not None:
        methods = [method for method in methods if method["name"] == arguments.name]
        if not methods:
            raise ValueError(unknown(arguments.name))
    if arguments.matrix:
        _print_matrix(arguments, [method["name"] for method in methods])
    elif arguments.json:
        print(json.dumps(methods, ensure_ascii=False, indent=1, default=str))
    elif arguments.markdown:
        print(catalogue.markdown(), end="")
    elif arguments.name is not None:
        _print_method(arguments.name)
    else:
        _print_list(methods)
    return 0


def _print_method(name: str) -> None:
    from ..guidance import Guidance, catalogue

    method = Guidance.registry[name]
    print(textwrap.dedent("    " + (method.__doc__ or "")).rstrip())
    print(f"\nMechanism: {method.about.mechanism}")
    print("\nAll fields, with their defaults:\n")
    for field in catalogue.described_fields(method):
        default = "" if field["required"] else f" = {field['default']!r}"
        print(f"  {field['name']}{default}")
        origin = f" (of {field['of']})" if field["of"] != method.__name__ else ""
        text = f"{field['text']}{origin}".strip()
        if text:
            print(textwrap.fill(text, 80, initial_indent="      ", subsequent_indent="      "))


def _print_list(methods: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("arXiv", no_wrap=True)
    table.add_column("rule, and what it is worth a try for")
    for method in methods:
        name = method["name"] + (" *" if method["experimental"] else "")
        table.add_row(name, method["paper"], f"{method['rule']}\n[dim]{method['helps']}[/dim]")
    console = Console()
    console.print(table)
    console.print('* experimental: the paper leaves details open; "textguide methods NAME" lists them')


def _print_matrix(arguments: argparse.Namespace, names: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..guidance import catalogue
    from ..guidance.places import PLACES

    rows = [row for row in catalogue.matrix() if row["method"] in names]
    if arguments.json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    if arguments.markdown:
        print(catalogue.matrix_markdown(), end="")
        return
    # Narrow enough for a terminal of 80 columns.
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method", justify="left", no_wrap=True)
    for place in PLACES:
        table.add_column(place.name, justify="center", no_wrap=True)
    numbers = catalogue.numbered_reasons(rows)
    for row in rows:
        cells = row["cells"].values()
        table.add_row(row["method"], *("✓" if cell is True else str(numbers[cell]) for cell in cells))
    console = Console()
    console.print(table)
    for reason, number in numbers.items():
        console.print(f"{number}. {reason}", soft_wrap=True)
