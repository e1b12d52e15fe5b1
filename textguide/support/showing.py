"""Values that show themselves: one description of what is seen, drawn as HTML in notebooks and by rich in terminals.

A class derives from :class:`Shown` and says in ``_shown`` what there is to see, in the blocks below. The HTML has no
script, every text in it is escaped, and its colours are tints of the page's own, so that it reads in light and dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MOST_ROWS = 20
"""Rows of a table that are drawn; a line says how many more there are."""

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
    """A sentence; a quiet one stands back."""

    text: str
    quiet: bool = False


@dataclass(frozen=True)
class Facts:
    """Names with their values."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Token:
    """A piece of a text.

    Args:
        text: what is written.
        heat: how strongly it is tinted, in [0, 1].
        marked: whether it is underlined.
        title: what is said of it where a pointer rests.
    """

    text: str
    heat: float = 0.0
    marked: bool = False
    title: str = ""


@dataclass(frozen=True)
class Tokens:
    """A text, piece by piece; ``before`` stands in front of it and stands back."""

    before: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Table:
    """A table; ``align`` has an ``l`` or an ``r`` a column, left where it is too short."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str = ""

    def side(self, column: int) -> str:
        """``l`` or ``r``."""
        return self.align[column] if column < len(self.align) else "l"

    @property
    def more(self) -> str:
        """What is said of the rows that are not drawn."""
        left = len(self.rows) - MOST_ROWS
        return f"… and {left} more" if left > 0 else ""


@dataclass(frozen=True)
class Folded:
    """Blocks that a reader opens; a terminal leaves them out."""

    title: str
    blocks: tuple[Block, ...]


Block = Line | Facts | Tokens | Table | Folded


class Shown:
    """What shows itself in notebooks (``_repr_html_``) and where rich prints (``__rich__``)."""

    def _shown(self) -> tuple[str, Sequence[Block]]:
        """A title, and what stands below it."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        """Static HTML for a notebook."""
        title, blocks = self._shown()
        return (
            f'<div class="textguide-shown"><style>{_STYLE}</style>'
            f"<p><strong>{html.escape(title)}</strong></p>{''.join(map(_html, blocks))}</div>"
        )

    def __rich__(self) -> Any:
        """The same for a terminal."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        title, blocks = self._shown()
        parts = [part for block in blocks for part in _rich(block)]
        return Panel(Group(*parts), title=Text(title), title_align="left", border_style="dim")


def figure(value: float | None, digits: int = 3) -> str:
    """A figure for a table: so many decimals, ``–`` for none, ``−inf`` and ``NaN`` by name."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "−inf"
    return f"{value:.{digits}f}".replace("-", "−")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> Table:
    """A :class:`Table` without the columns in which no row has anything."""
    lines = [tuple(row) for row in rows]
    kept = [column for column in range(len(header)) if any(row[column] for row in lines)]
    full = align.ljust(len(header), "l")
    return Table(
        tuple(header[c] for c in kept),
        tuple(tuple(row[c] for c in kept) for row in lines),
        "".join(full[c] for c in kept),
    )


def _html(block: Block) -> str:
    if isinstance(block, Line):
        return f"<p{_class('quiet' if block.quiet else '')}>{html.escape(block.text)}</p>"
    if isinstance(block, Facts):
        rows = (f'<tr><th class="quiet">{html.escape(n)}</th><td>{html.escape(v)}</td></tr>' for n, v in block.pairs)
        return f"<table>{''.join(rows)}</table>"
    if isinstance(block, Tokens):
        before = f'<span class="quiet">{html.escape(block.before)}</span>' if block.before else ""
        return f'<p class="tokens">{before}{"".join(map(_token, block.tokens))}</p>'
    if isinstance(block, Folded):
        inner = "".join(map(_html, block.blocks))
        return f"<details><summary>{html.escape(block.title)}</summary>{inner}</details>"
    head = "".join(
        f'<th scope="col"{_class("number quiet" if block.side(c) == "r" else "quiet")}>{html.escape(name)}</th>'
        for c, name in enumerate(block.header)
    )
    lines = "".join(
        "<tr>"
        + "".join(
            f"<td{_class('number' if block.side(c) == 'r' else '')}>{html.escape(cell)}</td>"
            for c, cell in enumerate(row)
        )
        + "</tr>"
        for row in block.rows[:MOST_ROWS]
    )
    more = f'<p class="quiet">{block.more}</p>' if block.more else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>{more}'


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
        text = Text(block.before, style="dim")
        for token in block.tokens:
            bold, marked = "bold " if token.heat > 0.4 else "", "underline" if token.marked else ""
            text.append(token.text, style=f"{bold}{marked}".strip() or "not dim")
        return [text]
    if isinstance(block, Folded):
        return []
    drawn = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column, name in enumerate(block.header):
        side: Any = "right" if block.side(column) == "r" else "left"
        short = max((len(row[column]) for row in block.rows), default=0) <= 12
        drawn.add_column(Text(name), justify=side, no_wrap=side == "right" and short, min_width=min(len(name), 8))
    for row in block.rows[:MOST_ROWS]:
        drawn.add_row(*map(Text, row))
    return [drawn, *([Text(block.more, style="dim")] if block.more else [])]
