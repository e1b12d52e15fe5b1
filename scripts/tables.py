"""Writes both tables of ``docs/guidance.md`` anew, from what is registered::

python scripts/tables.py
"""

from __future__ import annotations

from pathlib import Path

from textguide.guidance import catalogue

PAGE = Path(__file__).parents[1] / "docs" / "guidance.md"
TABLES = (
    ("<!-- made by `textguide methods --markdown` -->", "<!-- end -->", catalogue.markdown),
    (
        "<!-- made by `textguide methods --matrix --markdown` -->",
        "<!-- end of the matrix -->",
        catalogue.matrix_markdown,
    ),
)


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for head, tail, made in TABLES:
        before, rest = text.split(head, 1)
        text = f"{before}{head}\n\n{made()}\n{tail}{rest.split(tail, 1)[1]}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
