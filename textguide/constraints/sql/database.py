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
        return frozenset(word.lower() for word in KEYWORDS if self.continues(f"{text} {word}"))


def _words(names: Sequence[str]) -> frozenset[str]:
    """Names that are written without quotation marks, in small letters."""
    return frozenset(plain(name) for name in names if not name.startswith('"'))


def _authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    allowed = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
    if action not in allowed or (action == sqlite3.SQLITE_FUNCTION and second in _DENIED):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK
