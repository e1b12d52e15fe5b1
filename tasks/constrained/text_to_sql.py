"""Questions about a database, answered by a query: Spider's ``concert_singer`` (Yu et al., arXiv 1809.08887)."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from textguide.constraints import SQL, Constraint, Grammar

from ..loaders import local_file
from .base import ConstrainedTask, Item, conversation
from .sql_grammar import sql_grammar
from .sql_questions import EXAMPLES, QUESTIONS

FOLDER = "awrs/spider"
DATABASE = f"{FOLDER}/concert_singer.sqlite"
SECONDS = 2.0
"""Longest that a query may run."""
ROWS = 10_000
"""Most rows that are read; a cross join of small tables may have millions."""
_INSTRUCTION = "Answer the question by one SQLite query, on one line, and give nothing else. The tables are:\n{tables}"


class TextToSQL(ConstrainedTask):
    """Spider's questions about ``concert_singer``, and further ones of our own about the same tables.

    The constraint is a grammar made from the database: SELECT over its tables and columns, joins, conditions, groups,
    order, nested queries; with ``scoped``, columns are those of the tables that the query reads from, too. The judge
    runs the answer and the reference on a read-only connection and compares their rows, in any order unless the
    reference orders them. ``valid`` is 1 for a query that runs.

    Args:
        data: as for every task.
        scoped: constrain by :class:`~textguide.constraints.SQL`, not by its grammar alone.
    """

    name = "sql"
    measures = ("right", "valid")
    max_new_tokens = 96

    def __init__(self, data: str | os.PathLike[str] | None = None, scoped: bool = False) -> None:
        super().__init__(data)
        self.scoped = scoped

    def items(self) -> Sequence[Item]:
        path = local_file(f"{FOLDER}/dev.json", self.data)
        try:
            pairs = [(row["question"], row["query"]) for row in json.loads(path.read_text(encoding="utf-8"))]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path.name}: expected a list of objects with question and query ({error}); replace the file"
            ) from error
        instruction = _INSTRUCTION.format(
            tables="\n".join(f"{table}({', '.join(columns)})" for table, columns in self.tables.items())
        )
        pairs += [pair for pair in QUESTIONS if pair[0] not in {question for question, _ in pairs}]
        return [
            Item(f"{number:03d}", conversation(instruction, EXAMPLES, question), query)
            for number, (question, query) in enumerate(pairs)
        ]

    def constraint(self, item: Item) -> Constraint:
        return self._queries if self.scoped else self._grammar

    def check(self, item: Item, text: str) -> dict[str, float]:
        try:
            found = run(self._path, text)
        except sqlite3.Error:
            return {"right": 0.0, "valid": 0.0}
        wanted = run(self._path, item.answer)
        return {"right": float(same_rows(found, wanted, ordered(item.answer))), "valid": 1.0}

    @cached_property
    def tables(self) -> dict[str, list[str]]:
        """The columns of each table of the database."""
        connection = connect(self._path)
        try:
            names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {
                name: [row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (name,))]
                for name in names
            }
        finally:
            connection.close()

    @cached_property
    def _grammar(self) -> Grammar:
        return Grammar(sql_grammar(self.tables))

    @cached_property
    def _queries(self) -> SQL:
        return SQL(self._path)

    @cached_property
    def _path(self) -> Path:
        return local_file(DATABASE, self.data)


def connect(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """A connection that can read and nothing else, whatever is asked of it."""
    connection = sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    connection.execute("PRAGMA query_only = ON")
    return connection


def run(path: str | os.PathLike[str], query: str, seconds: float = SECONDS) -> list[tuple[Any, ...]]:
    """The rows of one SELECT, read-only and within a time limit; at most ``ROWS`` of them.

    Raises:
        sqlite3.Error: it is no query, does anything but read, is more than one statement, or takes too long.
    """
    connection = connect(path)
    allowed = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY)
    until = time.monotonic() + seconds
    connection.set_progress_handler(lambda: int(time.monotonic() > until), 10_000)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    try:
        cursor = connection.execute(query)
        if cursor.description is None:  # blank, or nothing but a comment
            raise sqlite3.ProgrammingError("no query")
        return cursor.fetchmany(ROWS)
    except ValueError as error:  # a zero character, or a lone surrogate
        raise sqlite3.ProgrammingError(str(error)) from error
    except sqlite3.Warning as error:  # two statements, before Python 3.12
        raise sqlite3.ProgrammingError(str(error)) from error
    finally:
        connection.close()


def same_rows(found: list[tuple[Any, ...]], wanted: list[tuple[Any, ...]], in_order: bool) -> bool:
    """Whether two results hold the same rows; numbers that differ by rounding are the same."""
    one, two = ([tuple(map(_rounded, row)) for row in rows] for rows in (found, wanted))
    return one == two if in_order else Counter(one) == Counter(two)


def ordered(query: str) -> bool:
    """Whether the order of a query's rows is asked for: ORDER BY outside of every bracket."""
    depth, outside = 0, []
    for character in query:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            outside.append(character)
    return "order by" in " ".join("".join(outside).lower().split())


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
