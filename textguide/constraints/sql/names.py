"""The names in a query against the tables that it reads from, as SQLite judges them.

A grammar knows which tables and columns there are, and not which of them a query has at hand: its columns are written
before its tables. SQLite is asked, about the query so far with its brackets closed, on a copy of the database that has
no rows; it compiles such a text, and never runs one.
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
from ..combine import AllOfSession
from ..engines.session import MaskCache
from ..memoized_session import MemoizedSession
from ..utf8 import whole_characters
from ..vocabulary import Vocabulary
from .grammar import spelled

_TOKEN = re.compile(r"""'[^']*'?|"(?:[^"]|"")*"?|\w+|\s+|<>|[<>!]=|.""", re.DOTALL)
_NAMES = re.compile(r"no such column|ambiguous column name|no such table")
_LASTING = re.compile(
    _NAMES.pattern + r"|misuse of aggregate|do not have the same number of result columns"
    r"|ORDER BY term does not match any column"
)
"""Complaints about the beginning of a query that nothing behind it can mend; not so one about its syntax."""
_CLAUSES = ("WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "INTERSECT", "EXCEPT", "UNION")
_SOURCES = ("JOIN", "LEFT", "ON")
_AGGREGATES = ("COUNT", "SUM", "AVG", "MIN", "MAX")
_BEFORE_COLUMN = (
    "(",
    ",",
    "=",
    "<",
    ">",
    "<=",
    ">=",
    "!=",
    "<>",
    "WHERE",
    "AND",
    "OR",
    "BY",
    "ON",
    "HAVING",
    "DISTINCT",
)
_ALIASES = tuple(f"T{number}" for number in range(1, 10))
LIST, FROM, DONE = "list", "from", "done"


class Copy:
    """A database in memory with the same tables and columns, and no rows.

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
        reads = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
        self._connection.set_authorizer(
            lambda action, *_: sqlite3.SQLITE_OK if action in reads else sqlite3.SQLITE_DENY
        )
        self.tables = tuple(spelled(name, dialect) for name in tables)
        self.columns = tuple(dict.fromkeys(spelled(name, dialect) for names in tables.values() for name in names))
        self.complaint = lru_cache(maxsize=1 << 16)(self._complaint)

    def _complaint(self, query: str) -> str:
        """What SQLite has against a query; empty where nothing."""
        try:
            with self._lock:
                self._connection.execute(f"EXPLAIN {query}").close()
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            return str(error) or type(error).__name__
        return ""


@dataclass
class Level:
    """What stands between two brackets, or the whole text.

    Args:
        state: whether its list of columns, its tables, or what comes behind them is being written; empty where it is no
            query.
        list_at: where that list begins.
        from_at: where its FROM begins.
        items: the columns in the list, each with what it is qualified by, or an empty text.
        bound: what its tables are called.
    """

    state: str = ""
    list_at: int = 0
    from_at: int = 0
    items: list[tuple[str, str]] = field(default_factory=list)
    bound: list[str] = field(default_factory=list)


Token = tuple[str, int, int]
"""A token and where it begins and ends."""
_END = ("LIMIT", 0, 0)


class Reader:
    """Reads a text, and asks about what is certain of its names.

    Args:
        text: a query of the grammar, or the beginning of one.
        copy: what is asked.
    """

    def __init__(self, text: str, copy: Copy) -> None:
        self.text, self.copy = text, copy
        self.levels = [Level()]

    def holds(self, is_whole: bool) -> bool:
        """Whether no name is missing that nothing behind the text can bring; of a whole text, whether it compiles."""
        found = [(part[0], part.start(), part.end()) for part in _TOKEN.finditer(self.text)]
        tokens = [token for token in found if not token[0].isspace()]
        ended = len(tokens) - (bool(tokens) and found[-1] == tokens[-1] and tokens[-1][0] != ".")
        ended = len(tokens) if is_whole else ended
        read: list[Token] = []
        for token in tokens[:ended]:
            if not self._step(token, read):
                return False
            read.append(token)
        if is_whole:
            end = (_END[0], len(self.text), len(self.text))
            return self._step(end, read) and not self.copy.complaint(self.text)
        return self._can_go_on(read, tokens[ended:])

    def _step(self, token: Token, read: list[Token]) -> bool:
        """Go on by a token that has ended; False where a name before it is missing for ever."""
        text, start, end = token
        word, last = text.upper(), read[-1][0].upper() if read else ""
        level = self._query()
        if level.state == FROM and not self._bind(level, token, read):
            return False
        if level.state == FROM and (word in _CLAUSES or (word == ")" and self.levels[-1] is level)):
            level.state = DONE
        if read and word not in ("(", ".", "AS") and not self._stands(level, self.text[: read[-1][2]]):
            return False
        if word == "(":
            self.levels.append(Level())
        elif word == ")" and len(self.levels) > 1:
            self.levels.pop()
        elif word == "SELECT":
            self.levels[-1] = Level(LIST, end)
        elif word == "FROM":
            level.state, level.from_at = FROM, start
        elif level.state == LIST and _is_name(text) and word not in ("DISTINCT", *_AGGREGATES):
            qualified = last == "." and level.items
            level.items.append((level.items.pop()[1], text) if qualified else ("", text))
        return True

    def _query(self) -> Level:
        """The innermost query."""
        return next((level for level in reversed(self.levels) if level.state), self.levels[0])

    def _bind(self, level: Level, token: Token, read: list[Token]) -> bool:
        """Note what a table is called, once that is certain; False where two have one name, or a column of the list is
        certain to be missing."""
        last = [one[0] for one in read[-2:]]
        if last[-1].upper() == "AS":
            name, source = token[0], self.text[level.from_at : token[2]]
        elif last[0].upper() in ("FROM", "JOIN") and token[0].upper() != "AS":
            name, source = last[1], self.text[level.from_at : read[-1][2]]
        else:
            return True
        if _plain(name) in level.bound:
            return False
        level.bound.append(_plain(name))
        return self._has_items(level, source, level.bound)

    def _has_items(self, level: Level, source: str, bound: Collection[str]) -> bool:
        """Whether the columns of the list may be those of these tables, or of some that are joined later."""
        if _NAMES.search(self._complaint(level, source)):  # a column of an ON that is ambiguous now
            return False
        for qualifier, column in level.items:
            if qualifier and _plain(qualifier) in bound:
                if _NAMES.search(self._complaint(level, source, f"{qualifier}.{column}")):
                    return False
            elif not qualifier and "ambiguous" in self._complaint(level, source, column):
                return False
        return True

    def _complaint(self, level: Level, source: str, items: str = "1") -> str:
        before = "SELECT" if level is self.levels[0] else self.text[: level.list_at]
        return self.copy.complaint(f"{before} {items} {source}{')' * (len(self.levels) - 1)}")

    def _stands(self, level: Level, text: str) -> bool:
        """Whether the query stands up to the end of ``text``, whatever comes behind."""
        if level.state == FROM:
            return not _NAMES.search(self._complaint(level, text[level.from_at :]))
        if level.state == DONE:
            return not _LASTING.search(self.copy.complaint(text + ")" * (len(self.levels) - 1)))
        return True

    def _can_go_on(self, read: list[Token], rest: list[Token]) -> bool:
        """Whether the last word can end, or has ended, so that its name is there.

        Args:
            read: the tokens before it.
            rest: the word, if it has not ended.
        """
        if not rest and read and _is_word(read[-1][0]):  # a space has ended it
            return self._is_there(read[-1], read[:-1], lambda name, word: name == word)
        if rest and not _is_word(rest[0][0]):  # quotation marks, signs
            return rest[0][0][0] in "'\"" or self._step(rest[0], read)
        if not rest and not (read and read[-1][0] == "."):
            return True
        return self._is_there(rest[0] if rest else ("", len(self.text), 0), read, str.startswith)

    def _is_there(self, token: Token, read: list[Token], fits: Callable[[str, str], bool]) -> bool:
        word, start, _ = token
        last = read[-1][0].upper() if read else ""
        level = self._query()
        if level.state == FROM and fits is str.startswith and not self._in_from(level, token, read):
            return False
        if level.state == LIST and last == ".":
            table = next((name for name in self.copy.tables if name.lower() == read[-2][0].lower()), "")
            names = [name for name in self.copy.columns if fits(name.lower(), word.lower())]
            return not table or not all(self.copy.complaint(f"SELECT {name} FROM {table}") for name in names)
        if level.state not in (FROM, DONE) or word[:1].isdigit():
            return True

        def matching(names: Iterable[str]) -> list[str]:
            return [name for name in names if fits(name.lower(), word.lower())]

        if last == "." and len(read) > 1 and not read[-2][0].isdigit():
            start = read[-2][1]
            names = [f"{read[-2][0]}.{name}" for name in matching(self.copy.columns)]
        elif last in _BEFORE_COLUMN:
            if matching(("SELECT", "DISTINCT")):
                return True
            names = [*matching(self.copy.columns), *(f"{name}(1)" for name in matching(_AGGREGATES))]
            if fits is str.startswith:
                names += [f"{name}.rowid" for name in matching((*_ALIASES, *self.copy.tables))]
        else:
            return True
        return any(self._stands(level, self.text[:start] + name) for name in names)

    def _may_join(self, level: Level, before: str, tables: Iterable[str]) -> bool:
        """Whether one of the tables may stand behind ``before``."""
        return any(self._has_items(level, f"{before} {name} AS textguide", level.bound) for name in tables)

    def _in_from(self, level: Level, token: Token, read: list[Token]) -> bool:
        """As :meth:`_is_there`, of a word that has not ended among the tables."""
        word, start, _ = token
        last = read[-1][0].upper()
        if last in ("FROM", "JOIN"):
            tables = [name for name in self.copy.tables if name.lower().startswith(word.lower())]
            return not tables or self._may_join(level, self.text[level.from_at : start], tables)
        if last == "AS":
            names = [name for name in _ALIASES if name.startswith(word.upper()) and _plain(name) not in level.bound]
            source = self.text[level.from_at : start]
            return any(self._has_items(level, source + name, (*level.bound, _plain(name))) for name in names)
        if last in (".", "ON", "=", "LEFT") or "AS".startswith(word.upper()):
            return True
        if any(name.startswith(word.upper()) for name in _SOURCES):
            source = f"{self.text[level.from_at : start]} JOIN"
            may_join = "ON".startswith(word.upper()) or self._may_join(level, source, self.copy.tables)
            return self._bind(level, token, read) and may_join
        return self._step((_END[0], start, start), read)  # a clause begins


def _is_word(text: str) -> bool:
    return text[:1] == "_" or text[:1].isalnum()


def _is_name(text: str) -> bool:
    return _is_word(text) or text[:1] == '"'


def _plain(name: str) -> str:
    """A name without its quotation marks, in small letters."""
    return name.strip('"').lower()


class QuerySession(AllOfSession):
    """One text under a grammar and under :class:`NamesSession`, whose mask is made from the grammar's."""

    _masks: MaskCache

    @classmethod
    def begun(cls, grammar: Session, names: NamesSession, vocabulary: Vocabulary) -> QuerySession:
        """In front of the first token."""
        session = cls(b"", (grammar, names), vocabulary)
        session._masks = MaskCache()
        return session

    def mask(self) -> Tensor | None:
        return self._masks.get(self.text, self._made)

    def _made(self) -> Tensor:
        grammar, names = self._parts
        mask = grammar.mask()
        assert mask is not None
        assert isinstance(names, NamesSession)
        mask = names.narrowed(mask)
        for end in self._vocabulary.ends:
            mask[end] = mask[end] and names.is_complete(self.text)
        return mask

    def fork(self) -> QuerySession:
        made = QuerySession(self.text, tuple(part.fork() for part in self._parts), self._vocabulary)
        made._masks = self._masks
        return made


class NamesSession(MemoizedSession[Copy]):
    """One text, which the grammar takes for the beginning of a query, against a database."""

    def is_prefix(self, text: bytes) -> bool:
        return self._holds(text, False)

    def is_complete(self, text: bytes) -> bool:
        return self._holds(text, True)

    def narrowed(self, mask: Tensor) -> Tensor:
        """A mask of the grammar's without the tokens that are refused here; the end token stays."""
        tokens, ends = self._vocabulary.tokens, self._vocabulary.ends
        last = next(reversed([part[0] for part in _TOKEN.finditer(self._seen())]), "")
        quote = last[0].encode() if last[:1] in ("'", '"') and not (len(last) > 1 and last[-1] == last[0]) else b""
        for token in mask.nonzero().flatten().tolist():
            if token not in ends and not (quote and quote not in tokens[token]):  # a string goes on
                mask[token] = self.is_prefix(self.text + tokens[token])
        return mask

    def _seen(self) -> str:
        parts = whole_characters(self._vocabulary.visible(self.text))
        return parts[0] if parts else ""

    def _holds(self, text: bytes, is_whole: bool) -> bool:
        parts = whole_characters(self._vocabulary.visible(text))
        if parts is None or (is_whole and parts[1]):
            return False
        return self._verdicts.get((is_whole, text), lambda: Reader(parts[0], self._checker).holds(is_whole))
