"""A database without rows: SQLite compiles queries on it, and never runs one."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache

from .lexing import KEYWORDS, STANDARD, plain, spelled

NAME_ERRORS = re.compile(r"no such column|ambiguous column name|no such table")
FINAL_ERRORS = re.compile(
    NAME_ERRORS.pattern + r"|no such function|no such collation|do not have the same number of result columns"
    r"|ORDER BY term does not match any column|sub-select returns|row value misused|cannot join using column"
)
"""Errors in the start of a query that nothing after it can mend."""
CALL_ERRORS = re.compile(r"misuse of|wrong number of arguments|DISTINCT")
"""The same, if no call is open: more arguments may follow."""
_GRAMMAR_ERRORS = re.compile(
    r"syntax error|unrecognized token|parser stack overflow|JOIN clause is required|unknown join type"
    r"|clause should come after|unknown or unsupported join|NATURAL join may not"
)
_KEYWORDS_BY_WHAT_FOLLOWS = ((" OVER", " a"), (" FILTER", " ("), (" WINDOW", " a AS"), (" WINDOW a", " AS"))
_PROBES = {
    "NOT": (" a", " NULL", " LIKE", " MATERIALIZED"),
    "ON": (" 1",),
    "USING": (" ( a )",),
}
"""What follows these keywords in queries that are allowed here; SQLite's grammar knows other uses of them."""
JOINS = ("NATURAL", "CROSS", "INNER", "LEFT", "RIGHT", "FULL", "OUTER")
_JOIN_ENDS = (" JOIN", " INNER JOIN", " LEFT JOIN", " LEFT OUTER JOIN", " OUTER JOIN")
_CONSTANTS = frozenset(("true", "false"))
_DENIED = frozenset({"load_extension", "fts3_tokenizer"})


class EmptyDatabase:
    """A database in memory with the same tables and columns, but without rows.

    Args:
        tables: the columns of each table.
        dialect: how names are spelled.
    """

    def __init__(self, tables: Mapping[str, Sequence[str]], dialect: str) -> None:
        self._connection = sqlite3.connect(":memory:", check_same_thread=False)
        self._lock = threading.Lock()
        for table, columns in tables.items():
            quoted = ['"' + name.replace('"', '""') + '"' for name in (table, *columns)]
            self._connection.execute(f"CREATE TABLE {quoted[0]} ({', '.join(quoted[1:])})")
        rows = self._connection.execute("SELECT DISTINCT name FROM pragma_function_list").fetchall()
        self.functions = frozenset(name for (name,) in rows if name.isidentifier() and name not in _DENIED)
        # Only reading is authorized from here on.
        self._connection.set_authorizer(_authorize)
        self.dialect = dialect
        self.spelled_tables = tuple(spelled(name, dialect) for name in tables)
        distinct = dict.fromkeys(name for names in tables.values() for name in names)
        self.spelled_columns = tuple(spelled(name, dialect) for name in distinct)
        self.tables = frozenset(name.lower() for name in tables)
        self.columns = frozenset(name.lower() for name in distinct)
        self.words_of_tables = _words(self.spelled_tables)
        self.words_of_columns = _words(self.spelled_columns)
        self.error_in = lru_cache(maxsize=1 << 16)(self._error_in)
        self.continues = lru_cache(maxsize=1 << 16)(self._continues)
        self.names_after = lru_cache(maxsize=1 << 14)(self._names_after)
        self.joins_after = lru_cache(maxsize=1 << 14)(self._joins_after)
        self.keywords_after = lru_cache(maxsize=1 << 14)(self._keywords_after)

    @property
    def is_standard(self) -> bool:
        """Whether quotation marks distinguish names from strings."""
        return self.dialect == STANDARD

    def _error_in(self, query: str) -> str:
        """SQLite's error message for a query; empty if it compiles."""
        try:
            with self._lock:
                self._connection.execute(f"EXPLAIN {query}").close()
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            return str(error) or type(error).__name__
        return ""

    def _continues(self, text: str) -> bool:
        """Whether SQLite's grammar, which reports the first token that cannot follow, has a text that starts so.

        Args:
            text: the start of a query in which every name is ``a`` and every number ``1``: the cache needs few texts.
        """
        if not _GRAMMAR_ERRORS.search(self._error_in(text)):
            return True
        # SQLite reads these words as keywords only if the right tokens follow.
        for end, following in _KEYWORDS_BY_WHAT_FOLLOWS:
            if text.endswith(end) and not _GRAMMAR_ERRORS.search(self._error_in(text + following)):
                return True
        return False

    def _keywords_after(self, text: str) -> frozenset[str]:
        """The keywords that SQLite's grammar allows after ``text``, which is as for ``continues``; in small letters."""
        found = []
        for word in KEYWORDS:
            if any(self.continues(f"{text} {word}{end}") for end in _PROBES.get(word, ("",))):
                found.append(word.lower())
        return frozenset(found)

    def _names_after(self, text: str) -> frozenset[str]:
        """Those of ``keywords_after`` that the grammar takes for names: a point may follow; in small letters."""
        names = [word for word in self.keywords_after(text) if self.continues(f"{text} {word.upper()} . a")]
        return frozenset(names) - _CONSTANTS

    def _joins_after(self, text: str) -> frozenset[str]:
        """The keywords after which ``text`` can go on to the table of a join, as ``keywords_after`` has them."""
        found = {"join"} if self.continues(f"{text} JOIN a") else set()
        for word in JOINS:
            if any(self.continues(f"{text} {word}{end} a") for end in _JOIN_ENDS):
                found.add(word.lower())
        return frozenset(found)


def _words(names: Sequence[str]) -> frozenset[str]:
    """Names that are written without quotation marks, in small letters."""
    return frozenset(plain(name) for name in names if not name.startswith('"'))


def _authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    allowed = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
    if action not in allowed or (action == sqlite3.SQLITE_FUNCTION and second in _DENIED):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK
