"""Writes the generated parts of the documentation::

    python scripts/tables.py

These are both tables of ``docs/guidance.md`` and two blocks of each page in ``docs/methods``, from the registered
methods, and the README's table of what to try first, from the verdicts on the claims in ``replications/``.
``tests/test_documentation.py`` fails if one of them is out of date.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import textguide
from textguide.eval.replications.advice import advice
from textguide.eval.replications.claim import names, read_claim
from textguide.eval.replications.pages import read_verdict
from textguide.guidance import Guidance, catalogue
from textguide.guidance.places import PLACES

ROOT = Path(__file__).parents[1]
CLAIMS = ROOT / "replications"
PAGES = "docs/results/replications"
MATRIX = "../guidance.md#where-each-method-runs"
COMPARED = ROOT / "docs/results/methods/methods.md"
COMPARISON = "../results/methods/README.md"


def what_to_try_first() -> str:
    """The README's table."""
    claims = [read_claim(CLAIMS / name) for name in names(CLAIMS)]
    return advice(claims, {claim.name: read_verdict(CLAIMS / claim.name) for claim in claims}, PAGES)


def method_names() -> list[str]:
    """The methods that have a page."""
    return [method["name"] for method in catalogue.methods()]


def summary(name: str) -> str:
    """The summary at the top of a method's page: its rule, paper, use, cost and where it runs."""
    method = Guidance.registry[name]
    about = method.about
    public = "textguide" if hasattr(textguide, method.__name__) else "textguide.guidance"
    lines = [
        f"* **Rule:** {about.rule}",
        f"* **Paper:** {f'[arXiv {about.paper}](https://arxiv.org/abs/{about.paper})' if about.paper else 'none'}",
        *([f"* **Mechanism:** {about.mechanism}"] if about.paper else []),
        f"* **When to use:** for {about.helps}",
        f"* **Extra cost:** {about.passes}",
        f"* **Neutral at:** {about.neutral}",
        f"* **Runs in:** {_runs_in(method)}",
        f"* **Name:** `{public}.{method.__name__}` in Python, `{name}` for `--guidance` and in JSON",
    ]
    if f"\n| {name} |" in COMPARED.read_text(encoding="utf-8"):
        lines.append(f"* **Results:** [comparison of all methods]({COMPARISON})")
    if about.experimental:
        lines.append(f"* **Experimental:** {_experimental(method)}")
    return "\n".join(textwrap.fill(line, 120, subsequent_indent="  ", break_on_hyphens=False) for line in lines)


def _runs_in(method: type[Guidance]) -> str:
    example = catalogue.example(method)
    runs = [f"`{place.name}`" for place in PLACES if place.reason(example) is None]
    shown = "everywhere" if len(runs) == len(PLACES) else ", ".join(runs)
    return f"{shown} ([where each method runs]({MATRIX}))"


def _experimental(method: type[Guidance]) -> str:
    """How the method differs from its paper, from its docstring."""
    found = re.search(r"Experimental: (.+?)\n\n", method.__doc__ or "", re.DOTALL)
    assert found is not None, f"the docstring of {method.__name__} has no paragraph 'Experimental:'"
    return _as_markdown(" ".join(found[1].split()))


def field_table(name: str) -> str:
    """Every field of a method with its default and its meaning."""
    method = Guidance.registry[name]
    lines = ["## Fields", "", "| field | default | meaning |", "|---|---|---|"]
    for field in catalogue.described_fields(method):
        default = "required" if field["required"] else f"`{_shown_default(field['default'])}`"
        meaning = _as_markdown(field["text"]).replace("|", "\\|")
        lines.append(f"| `{field['name']}` | {default} | {meaning} |")
    return "\n".join(lines)


def _shown_default(value: Any) -> str:
    text = repr(value).replace("|", "\\|").replace("`", "'")
    return text if len(text) <= 40 else f"{text[:36]}…{text[-1]}"


def _as_markdown(text: str) -> str:
    """A docstring's text with its roles and literals as Markdown code."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


Table = tuple[str, str, str, Callable[[], str]]
"""A page, the comments before and after the generated part, and the function that generates it."""

TABLES: tuple[Table, ...] = (
    ("docs/guidance.md", "<!-- made by `textguide methods --markdown` -->", "<!-- end -->", catalogue.markdown),
    (
        "docs/guidance.md",
        "<!-- made by `textguide methods --matrix --markdown` -->",
        "<!-- end of the matrix -->",
        catalogue.matrix_markdown,
    ),
    (
        "README.md",
        "<!-- made by `python scripts/tables.py` -->",
        "<!-- end of what to try first -->",
        what_to_try_first,
    ),
    *(
        (
            f"docs/methods/{name}.md",
            "<!-- summary, made by `python scripts/tables.py` -->",
            "<!-- end of the summary -->",
            partial(summary, name),
        )
        for name in method_names()
    ),
    *(
        (
            f"docs/methods/{name}.md",
            "<!-- fields, made by `python scripts/tables.py` -->",
            "<!-- end of the fields -->",
            partial(field_table, name),
        )
        for name in method_names()
    ),
)


def written(text: str, head: str, tail: str, made: str) -> str:
    """``text`` with ``made`` between the comments ``head`` and ``tail``."""
    before, rest = text.split(head, 1)
    return f"{before}{head}\n\n{made.strip()}\n\n{tail}{rest.split(tail, 1)[1]}"


def main() -> None:
    for page, head, tail, made in TABLES:
        path = ROOT / page
        path.write_text(written(path.read_text(encoding="utf-8"), head, tail, made()), encoding="utf-8")


if __name__ == "__main__":
    main()
