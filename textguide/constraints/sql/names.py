"""The names in a query, checked by SQLite against the tables that the query reads from.

A grammar knows which tables and columns exist, but not which of them a query may use: its columns are written before
its tables. So SQLite compiles the query so far, with its brackets closed, on a copy of the database without rows. It
never runs a query.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from torch import Tensor

from ..base import Session
from ..combined_sessions import AllOfSession
from ..engines.session import MaskCache
from ..memoized_session import MemoizedSession
from ..utf8 import whole_characters
from ..vocabulary import Vocabulary
from .grammar import spelled

_TOKEN = re.compile(r"""'[^']*'?|"(?:[^"]|"")*"?|\w+|\s+|<>|[<>!]=|.""", re.DOTALL)
_NAME_ERRORS = re.compile(r"no such column|ambiguous column name|no such table")
_FINAL_ERRORS = re.compile(
    _NAME_ERRORS.pattern + r"|misuse of aggregate|do not have the same number of result columns"
    r"|ORDER BY term does not match any column"
)
"""Errors in the start of a query that nothing after it can mend. Syntax errors are not among them."""
_CLAUSES = ("WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "INTERSECT", "EXCEPT", "UNION")
_SOURCE_WORDS = ("JOIN", "LEFT", "ON")
_AGGREGATES = ("COUNT", "SUM", "AVG", "MIN", "MAX")
_SIGNS_BEFORE_COLUMN = ("(", ",", "=", "<", ">", "<=", ">=", "!=", "<>")
_WORDS_BEFORE_COLUMN = ("WHERE", "AND", "OR", "BY", "ON", "HAVING", "DISTINCT")
_ALIASES = tuple(f"T{number}" for number in range(1, 10))
LIST = "list"
FROM = "from"
DONE = "done"


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
        # Only reading is authorized from here on.
        allowed = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
        self._connection.set_authorizer(
            lambda action, *_: sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY
        )
        self.tables = tuple(spelled(name, dialect) for name in tables)
        self.columns = tuple(dict.fromkeys(spelled(name, dialect) for names in tables.values() for name in names))
        self.error_in = lru_cache(maxsize=1 << 16)(self._error_in)

    def _error_in(self, query: str) -> str:
        """SQLite's error message for a query; empty if it compiles."""
        try:
            with self._lock:
                self._connection.execute(f"EXPLAIN {query}").close()
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            return str(error) or type(error).__name__
        return ""


@dataclass
class Level:
    """The text between two brackets, or the whole text.

    Args:
        state: which part is being written: the list of columns, the tables, or the clauses after them; empty if the
            text is not a query.
        list_at: where the list begins.
        from_at: where FROM begins.
        items: the columns in the list, each with its qualifier, which may be empty.
        tables: the names under which its tables are known, in small letters.
    """

    state: str = ""
    list_at: int = 0
    from_at: int = 0
    items: list[tuple[str, str]] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)


Token = tuple[str, int, int]
"""A token, its start and its end."""
Fits = Callable[[str, str], bool]
"""Whether a name, the first argument, may be what a word, the second one, becomes."""
_END = ("LIMIT", 0, 0)


class Reader:
    """Reads a text and has SQLite check the names in it that are certain.

    Args:
        text: a query of the grammar, or the start of one.
        database: compiles queries.
    """

    def __init__(self, text: str, database: EmptyDatabase) -> None:
        self.text = text
        self.database = database
        self.levels = [Level()]

    def holds(self, is_whole: bool) -> bool:
        """Whether the text, or some continuation of it, has no wrong name; a whole text must compile."""
        matches = [(part[0], part.start(), part.end()) for part in _TOKEN.finditer(self.text)]
        tokens = [token for token in matches if not token[0].isspace()]
        ended = len(tokens)
        if not is_whole and tokens and matches[-1] == tokens[-1] and tokens[-1][0] != ".":
            ended -= 1  # more letters may follow the last token
        read: list[Token] = []
        for token in tokens[:ended]:
            if not self._step(token, read):
                return False
            read.append(token)
        if is_whole:
            end = (_END[0], len(self.text), len(self.text))
            return self._step(end, read) and not self.database.error_in(self.text)
        return self._last_word_fits(read, tokens[ended:])

    def _step(self, token: Token, read: list[Token]) -> bool:
        """Read a token that has ended.

        Returns:
            False if a name before the token is wrong and nothing can mend it.
        """
        word = token[0].upper()
        level = self._query()
        if level.state == FROM and not self._add_table(level, token, read):
            return False
        if level.state == FROM and (word in _CLAUSES or (word == ")" and self.levels[-1] is level)):
            level.state = DONE
        if read and word not in ("(", ".", "AS") and not self._is_valid(level, self.text[: read[-1][2]]):
            return False
        self._change_level(level, token, read)
        return True

    def _change_level(self, level: Level, token: Token, read: list[Token]) -> None:
        """Note what a token means for the innermost query, ``level``: a bracket, a clause, or a column of its list."""
        text, start, end = token
        word = text.upper()
        if word == "(":
            self.levels.append(Level())
        elif word == ")" and len(self.levels) > 1:
            self.levels.pop()
        elif word == "SELECT":
            self.levels[-1] = Level(LIST, end)
        elif word == "FROM":
            level.state = FROM
            level.from_at = start
        elif level.state == LIST and _is_name(text) and word not in ("DISTINCT", *_AGGREGATES):
            if read and read[-1][0] == "." and level.items:  # the item before the point was its qualifier
                qualifier = level.items.pop()[1]
            else:
                qualifier = ""
            level.items.append((qualifier, text))

    def _query(self) -> Level:
        """The innermost query."""
        return next((level for level in reversed(self.levels) if level.state), self.levels[0])

    def _add_table(self, level: Level, token: Token, read: list[Token]) -> bool:
        """Note the name of a table once it is certain, which is at the token after it.

        Returns:
            False if two tables have the same name, or a column of the list is certainly wrong.
        """
        last = [one[0] for one in read[-2:]]
        if last[-1].upper() == "AS":
            name = token[0]
            source = self.text[level.from_at : token[2]]
        elif last[0].upper() in ("FROM", "JOIN") and token[0].upper() != "AS":
            name = last[1]
            source = self.text[level.from_at : read[-1][2]]
        else:
            return True
        if _plain(name) in level.tables:
            return False
        level.tables.append(_plain(name))
        return self._list_fits(level, source, level.tables)

    def _list_fits(self, level: Level, source: str, tables: Collection[str]) -> bool:
        """Whether the columns of the list may belong to these tables, or to some that are joined later."""
        if _NAME_ERRORS.search(self._error_in(level, source)):  # a column of an ON that is ambiguous now
            return False
        for qualifier, column in level.items:
            if qualifier and _plain(qualifier) in tables:
                if _NAME_ERRORS.search(self._error_in(level, source, f"{qualifier}.{column}")):
                    return False
            elif not qualifier and "ambiguous" in self._error_in(level, source, column):
                return False
        return True

    def _error_in(self, level: Level, source: str, items: str = "1") -> str:
        """SQLite's error message for ``items`` of the tables ``source``, inside of the queries around ``level``."""
        before = "SELECT" if level is self.levels[0] else self.text[: level.list_at]
        return self.database.error_in(f"{before} {items} {source}{')' * (len(self.levels) - 1)}")

    def _is_valid(self, level: Level, text: str) -> bool:
        """Whether the query is valid up to the end of ``text``, whatever follows."""
        if level.state == FROM:
            return not _NAME_ERRORS.search(self._error_in(level, text[level.from_at :]))
        if level.state == DONE:
            return not _FINAL_ERRORS.search(self.database.error_in(text + ")" * (len(self.levels) - 1)))
        return True

    def _last_word_fits(self, read: list[Token], rest: list[Token]) -> bool:
        """Whether the last word is a name that exists, or can become one.

        Args:
            read: the tokens before it.
            rest: the word, if it has not ended.
        """
        if not rest and read and _is_word(read[-1][0]):  # a space has ended it
            return self._name_fits(read[-1], read[:-1], lambda name, word: name == word)
        if rest and not _is_word(rest[0][0]):  # quotation marks, signs
            return rest[0][0][0] in "'\"" or self._step(rest[0], read)
        if not rest and not (read and read[-1][0] == "."):
            return True
        return self._name_fits(rest[0] if rest else ("", len(self.text), 0), read, str.startswith)

    def _name_fits(self, token: Token, read: list[Token], fits: Fits) -> bool:
        """Whether a word is, or becomes, a name that the query may have there.

        Args:
            token: the word.
            read: the tokens before it.
            fits: equality for a word that has ended, and ``str.startswith`` for another one.
        """
        word = token[0]
        last = read[-1][0].upper() if read else ""
        level = self._query()
        if level.state == FROM and fits is str.startswith and not self._fits_in_from(level, token, read):
            return False
        if level.state == LIST and last == ".":
            return self._is_column_of(read[-2][0], word, fits)
        if level.state not in (FROM, DONE) or word[:1].isdigit():
            return True
        return self._fits_in_condition(level, token, read, fits)

    def _fits_in_condition(self, level: Level, token: Token, read: list[Token], fits: Fits) -> bool:
        """As :meth:`_name_fits`, for a word after the list of columns, in an ON or in the clauses after the tables."""
        word = token[0]
        last = read[-1][0].upper() if read else ""
        columns = _fitting(self.database.columns, word, fits)
        if last == "." and len(read) > 1 and not read[-2][0].isdigit():
            qualifier, start, _ = read[-2]
            return self._any_valid(level, self.text[:start], [f"{qualifier}.{name}" for name in columns])
        if last not in (*_SIGNS_BEFORE_COLUMN, *_WORDS_BEFORE_COLUMN) or _fitting(("SELECT", "DISTINCT"), word, fits):
            return True
        names = [*columns, *(f"{name}(1)" for name in _fitting(_AGGREGATES, word, fits))]
        if fits is str.startswith:  # a qualifier; every table of SQLite has the column rowid
            names += [f"{name}.rowid" for name in _fitting((*_ALIASES, *self.database.tables), word, fits)]
        return self._any_valid(level, self.text[: token[1]], names)

    def _is_column_of(self, qualifier: str, word: str, fits: Fits) -> bool:
        """Whether a word is, or becomes, a column of the table ``qualifier``; True for an alias, known only later."""
        table = next((name for name in self.database.tables if name.lower() == qualifier.lower()), "")
        if not table:
            return True
        names = _fitting(self.database.columns, word, fits)
        return not all(self.database.error_in(f"SELECT {name} FROM {table}") for name in names)

    def _any_valid(self, level: Level, before: str, names: Iterable[str]) -> bool:
        """Whether the query is valid with one of the names after ``before``."""
        return any(self._is_valid(level, before + name) for name in names)

    def _may_join(self, level: Level, before: str, tables: Iterable[str]) -> bool:
        """Whether one of the tables may follow ``before``."""
        return any(self._list_fits(level, f"{before} {name} AS textguide", level.tables) for name in tables)

    def _fits_in_from(self, level: Level, token: Token, read: list[Token]) -> bool:
        """As :meth:`_name_fits`, for an unfinished word among the tables."""
        start = token[1]
        word = token[0].upper()
        last = read[-1][0].upper()
        source = self.text[level.from_at : start]
        if last in ("FROM", "JOIN"):
            tables = _fitting(self.database.tables, word, str.startswith)
            return not tables or self._may_join(level, source, tables)
        if last == "AS":
            names = [name for name in _ALIASES if name.startswith(word) and _plain(name) not in level.tables]
            return any(self._list_fits(level, source + name, (*level.tables, _plain(name))) for name in names)
        if last in (".", "ON", "=", "LEFT") or "AS".startswith(word):
            return True
        if any(name.startswith(word) for name in _SOURCE_WORDS):
            may_join = "ON".startswith(word) or self._may_join(level, f"{source} JOIN", self.database.tables)
            return self._add_table(level, token, read) and may_join
        return self._step((_END[0], start, start), read)  # a clause begins


def _fitting(names: Iterable[str], word: str, fits: Fits) -> list[str]:
    return [name for name in names if fits(name.lower(), word.lower())]


def _is_word(text: str) -> bool:
    return text[:1] == "_" or text[:1].isalnum()


def _is_name(text: str) -> bool:
    return _is_word(text) or text[:1] == '"'


def _plain(name: str) -> str:
    """A name without quotation marks, in small letters."""
    return name.strip('"').lower()


class QuerySession(AllOfSession):
    """One text under a grammar and under :class:`NamesSession`; the mask is that of the grammar, narrowed."""

    _masks: MaskCache

    @classmethod
    def begin(cls, grammar: Session, names: NamesSession, vocabulary: Vocabulary) -> QuerySession:
        """A session before the first token."""
        session = cls(b"", (grammar, names), vocabulary)
        session._masks = MaskCache()
        return session

    def mask(self) -> Tensor | None:
        return self._masks.get(self.text, self._compute_mask)

    def _compute_mask(self) -> Tensor:
        grammar, names = self._parts
        mask = grammar.mask()
        assert mask is not None
        assert isinstance(names, NamesSession)
        mask = names.narrowed(mask)
        for end in self._vocabulary.ends:
            mask[end] = mask[end] and names.is_complete(self.text)
        return mask

    def fork(self) -> QuerySession:
        copy = QuerySession(self.text, tuple(part.fork() for part in self._parts), self._vocabulary)
        copy._masks = self._masks
        return copy


class NamesSession(MemoizedSession[EmptyDatabase]):
    """One text, which the grammar accepts as the start of a query, against a database."""

    def is_prefix(self, text: bytes) -> bool:
        return self._holds(text, False)

    def is_complete(self, text: bytes) -> bool:
        return self._holds(text, True)

    def narrowed(self, mask: Tensor) -> Tensor:
        """A mask of the grammar without the tokens that are rejected here; end tokens stay."""
        tokens = self._vocabulary.tokens
        quote = self._open_quote()
        for token in mask.nonzero().flatten().tolist():
            stays_in_string = quote and quote not in tokens[token]
            if token not in self._vocabulary.ends and not stays_in_string:
                mask[token] = self.is_prefix(self.text + tokens[token])
        return mask

    def _open_quote(self) -> bytes:
        """The quotation mark of a string or name that is not closed at the end of the text; empty if there is none."""
        parts = whole_characters(self._vocabulary.visible(self.text))
        matches = _TOKEN.findall(parts[0] if parts else "")
        last = matches[-1] if matches else ""
        if last[:1] not in ("'", '"') or (len(last) > 1 and last[-1] == last[0]):
            return b""
        return bytes(last[0].encode())

    def _holds(self, text: bytes, is_whole: bool) -> bool:
        parts = whole_characters(self._vocabulary.visible(text))
        if parts is None or (is_whole and parts[1]):
            return False
        return self._verdicts.get((is_whole, text), lambda: Reader(parts[0], self._checker).holds(is_whole))
