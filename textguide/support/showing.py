"""Values that display themselves: one description, drawn as HTML in notebooks and by rich in terminals.

A class derives from :class:`Shown` and returns a title and blocks from ``_shown``. The HTML has no script, all texts in
it are escaped, and its colours are tints of the page's own, so that it is legible on light and dark pages.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MOST_ROWS = 20
"""Largest number of rows that are drawn of a table; a line below it gives the number of the others."""

_STYLE = (
    ".textguide-shown{font:13px/1.5 system-ui,sans-serif;border:1px solid rgba(128,128,128,.4);border-radius:6px;"
    "padding:.6em .8em;margin:.4em 0;max-width:60em;overflow-wrap:break-word}"
    ".textguide-shown .quiet{opacity:.72}"
    ".textguide-shown p{margin:.25em 0}"
    ".textguide-shown .wide{overflow-x:auto}"
    ".textguide-shown table{border-collapse:collapse;margin:.4em 0;font-size:inherit;background:none}"
    ".textguide-shown th,.textguide-shown td{text-align:left;vertical-align:top;padding:.15em .9em .15em 0;"
    "border:0;border-top:1px solid rgba(128,128,128,.3);background:none;white-space:pre-wrap;max-width:44em}"
    ".textguide-shown tr:first-child>*{border-top:0}"
    ".textguide-shown .number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}"
    ".textguide-shown .tokens{white-space:pre-wrap;font-family:ui-monospace,monospace;line-height:1.9}"
    ".textguide-shown .tokens span{border-radius:3px;padding:.1em 0}"
    ".textguide-shown .marked{box-shadow:inset 0 -2px currentColor}"
    ".textguide-shown summary{cursor:pointer}"
)


@dataclass(frozen=True)
class Line:
    """A sentence; a quiet one is dimmed."""

    text: str
    quiet: bool = False


@dataclass(frozen=True)
class Facts:
    """Pairs of a name and a value."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Token:
    """A piece of a text.

    Args:
        text: the text.
        heat: strength of its tint, in [0, 1].
        marked: whether it is underlined.
        title: text that is shown while the pointer is on it.
    """

    text: str
    heat: float = 0.0
    marked: bool = False
    title: str = ""


@dataclass(frozen=True)
class Tokens:
    """A text, piece by piece, after a dimmed ``before``."""

    before: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Table:
    """A table; ``align`` has an ``l`` or an ``r`` per column, and columns beyond its end are left-aligned."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str = ""

    def side(self, column: int) -> str:
        """Alignment of a column: ``l`` or ``r``."""
        return self.align[column] if column < len(self.align) else "l"

    @property
    def more(self) -> str:
        """The line about rows that are not drawn; empty if all are."""
        left = len(self.rows) - MOST_ROWS
        return f"… and {left} more" if left > 0 else ""


@dataclass(frozen=True)
class Folded:
    """Blocks that are hidden until a reader opens them; a terminal leaves them out."""

    title: str
    blocks: tuple[Block, ...]


Block = Line | Facts | Tokens | Table | Folded


class Shown:
    """Base class of values that display themselves in notebooks (``_repr_html_``) and in rich (``__rich__``)."""

    def _shown(self) -> tuple[str, Sequence[Block]]:
        """A title, and the blocks below it."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        """Static HTML, for notebooks."""
        title, blocks = self._shown()
        return (
            f'<div class="textguide-shown"><style>{_STYLE}</style>'
            f"<p><strong>{html.escape(title)}</strong></p>{''.join(map(_html, blocks))}</div>"
        )

    def __rich__(self) -> Any:
        """A panel with the same content, for terminals."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        title, blocks = self._shown()
        parts = [part for block in blocks for part in _rich(block)]
        return Panel(Group(*parts), title=Text(title), title_align="left", border_style="dim")


def figure(value: float | None, digits: int = 3) -> str:
    """A number for a table, with ``digits`` decimals; ``–`` for None, and ``inf``, ``−inf`` and ``NaN`` by name."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "−inf"
    return f"{value:.{digits}f}".replace("-", "−")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> Table:
    """A :class:`Table` without the columns that are empty in all rows."""
    cells = [tuple(row) for row in rows]
    columns = [column for column in range(len(header)) if any(row[column] for row in cells)]
    sides = align.ljust(len(header), "l")
    return Table(
        tuple(header[column] for column in columns),
        tuple(tuple(row[column] for column in columns) for row in cells),
        "".join(sides[column] for column in columns),
    )


def _html(block: Block) -> str:
    if isinstance(block, Line):
        return f"<p{_class('quiet' if block.quiet else '')}>{html.escape(block.text)}</p>"
    if isinstance(block, Facts):
        rows = ""
        for name, value in block.pairs:
            rows += f'<tr><th class="quiet">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
        return f"<table>{rows}</table>"
    if isinstance(block, Tokens):
        before = f'<span class="quiet">{html.escape(block.before)}</span>' if block.before else ""
        return f'<p class="tokens">{before}{"".join(map(_token, block.tokens))}</p>'
    if isinstance(block, Folded):
        inner = "".join(map(_html, block.blocks))
        return f"<details><summary>{html.escape(block.title)}</summary>{inner}</details>"
    return _html_table(block)


def _html_table(block: Table) -> str:
    head = ""
    for column, name in enumerate(block.header):
        style = _class("number quiet" if block.side(column) == "r" else "quiet")
        head += f'<th scope="col"{style}>{html.escape(name)}</th>'
    body = ""
    for row in block.rows[:MOST_ROWS]:
        cells = ""
        for column, cell in enumerate(row):
            cells += f"<td{_class('number' if block.side(column) == 'r' else '')}>{html.escape(cell)}</td>"
        body += f"<tr>{cells}</tr>"
    more = f'<p class="quiet">{block.more}</p>' if block.more else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}'


def _token(token: Token) -> str:
    heat = f' style="background:rgba(240,138,36,{0.6 * min(max(token.heat, 0.0), 1.0):.2f})"' if token.heat > 0 else ""
    title = f' title="{html.escape(token.title)}"' if token.title else ""
    return f"<span{_class('marked' if token.marked else '')}{heat}{title}>{html.escape(token.text)}</span>"


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _rich(block: Block) -> list[Any]:
    from rich.table import Table as RichTable
    from rich.text import Text

    if isinstance(block, Line):
        return [Text(block.text, style="dim" if block.quiet else "")]
    if isinstance(block, Facts):
        grid = RichTable(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        for name, value in block.pairs:
            grid.add_row(Text(name, style="dim"), Text(value))
        return [grid]
    if isinstance(block, Tokens):
        return [_rich_tokens(block)]
    if isinstance(block, Folded):
        return []
    return _rich_table(block)


def _rich_tokens(block: Tokens) -> Any:
    from rich.text import Text

    text = Text(block.before, style="dim")
    for token in block.tokens:
        styles = []
        if token.heat > 0.4:
            styles.append("bold")
        if token.marked:
            styles.append("underline")
        # Without a style of its own a token would be as dim as the text before it.
        text.append(token.text, style=" ".join(styles) or "not dim")
    return text


def _rich_table(block: Table) -> list[Any]:
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column, name in enumerate(block.header):
        is_number = block.side(column) == "r"
        is_short = all(len(row[column]) <= 12 for row in block.rows)
        table.add_column(
            Text(name),
            justify="right" if is_number else "left",
            no_wrap=is_number and is_short,
            min_width=min(len(name), 8),
        )
    for row in block.rows[:MOST_ROWS]:
        table.add_row(*map(Text, row))
    if block.more:
        return [table, Text(block.more, style="dim")]
    return [table]
