"""Write the generated tables: both of ``docs/guidance.md``, from the registered methods, and the README's, from the
verdicts on claims::

    python scripts/tables.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from textguide.eval.replications.advice import advice
from textguide.eval.replications.claim import names, read_claim
from textguide.eval.replications.pages import read_verdict
from textguide.guidance import catalogue

ROOT = Path(__file__).parents[1]
CLAIMS = ROOT / "replications"
PAGES = "docs/results/replications"


def what_to_try_first() -> str:
    """The README's table."""
    claims = [read_claim(CLAIMS / name) for name in names(CLAIMS)]
    return advice(claims, {claim.name: read_verdict(CLAIMS / claim.name) for claim in claims}, PAGES)


TABLES: tuple[tuple[str, str, str, Callable[[], str]], ...] = (
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
)


def written(text: str, head: str, tail: str, made: str) -> str:
    """``text`` with ``made`` between the marks."""
    before, rest = text.split(head, 1)
    return f"{before}{head}\n\n{made.strip()}\n{tail}{rest.split(tail, 1)[1]}"


def main() -> None:
    for page, head, tail, made in TABLES:
        path = ROOT / page
        path.write_text(written(path.read_text(encoding="utf-8"), head, tail, made()), encoding="utf-8")


if __name__ == "__main__":
    main()
