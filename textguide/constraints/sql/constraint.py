"""Queries that a database can answer."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from textguide.support.errors import MissingExtraError

from .. import engines
from ..base import Constraint, Session
from ..engines import llguidance_engine
from ..memoized_session import VerdictCache
from ..vocabulary import Vocabulary
from .grammar import DIALECTS, STANDARD, sql_grammar
from .names import Copy, NamesSession, QuerySession

NAMES_KEPT = 8


@dataclass(frozen=True)
class SQL(Constraint):
    """SELECT queries over the tables and columns of one database.

    A grammar made from the database admits its tables and columns and no others: conditions, groups, order, inner and
    left joins, INTERSECT, EXCEPT and UNION, nested queries in conditions, five aggregates, on one line with single
    spaces; no subquery in FROM, no arithmetic, no functions. Beside it each beginning of a query is put to SQLite, on
    an empty copy of the tables in memory: every column must belong to one of the tables that its query reads from (or
    one around it), and to one alone. A finished text is a member only where SQLite compiles it. In one FROM no name
    stands for two tables, and ON speaks of tables that stand before it. Nothing is ever run, no row is read, and the
    grammar has no statement that writes.

    Where nothing more can mend it, a text is refused at once: at the end of the FROM whose tables lack a column of the
    list, at the table that makes a column ambiguous, in the middle of a name that would be missing. Two things are
    found out only later, at a place where nothing can follow, so that the particle has weight 0: columns of a list that
    no tables have together, and lists of different lengths on the two sides of a UNION.

    Args:
        database: the path of a SQLite file, which is opened read-only; a URL of SQLAlchemy, such as
            ``postgresql://user@host/name``, of which the tables and views of the default schema are read; or the
            tables themselves, ``{"singer": ["Name", "Age"]}``, as a dict or JSON. The constraint holds the names alone.
        dialect: ``sqlite``, or ``standard``: strings between single quotation marks alone, and names with capital
            letters between double ones, as PostgreSQL asks for; ``auto`` is ``sqlite``, and ``standard`` for URLs of
            other databases. SQLite judges in both cases: what another database asks for beyond (types that can be
            compared, columns that are grouped) is not checked.

    Raises:
        MissingExtraError: ``database`` is a URL, and SQLAlchemy is not installed.
        ValueError: ``database`` cannot be read or has no table, or ``dialect`` is unknown.

    Example:
        >>> SQL({"singer": ["Name", "Age"]}).tables
        {'singer': ['Name', 'Age']}
    """

    database: Any
    dialect: str = "auto"

    kind = "sql"

    def __post_init__(self) -> None:
        if self.dialect not in ("auto", *DIALECTS):
            raise ValueError(f"dialect={self.dialect!r} must be one of auto, {', '.join(DIALECTS)}")
        tables, dialect = _read(self.database)
        object.__setattr__(self, "database", json.dumps(tables, ensure_ascii=False))
        object.__setattr__(self, "dialect", dialect if self.dialect == "auto" else self.dialect)

    @property
    def tables(self) -> dict[str, list[str]]:
        """The columns of each table."""
        tables: dict[str, list[str]] = json.loads(self.database)
        return tables

    @property
    def grammar(self) -> str:
        """The grammar, in Lark's notation, that the mask holds to."""
        return sql_grammar(self.tables, self.dialect)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "database": self.tables, "dialect": self.dialect}

    @classmethod
    def build(cls, values: dict[str, Any]) -> Constraint:
        if not isinstance(values["database"], Mapping):
            raise ValueError(
                f"database={values['database']!r} of a constraint that is given as JSON must be the tables, as in "
                '{"singer": ["Name", "Age"]}; SQL(path) reads them from a database'
            )
        return cls(**values)

    def start(self, vocabulary: Vocabulary) -> Session:
        grammar = engines.llguidance_session(
            f"database={self.database[:60]}", llguidance_engine.lark(self.grammar), vocabulary
        )
        names = NamesSession(_copy(self.database, self.dialect), vocabulary, b"", VerdictCache())
        return QuerySession.begun(grammar, names, vocabulary)


@lru_cache(maxsize=NAMES_KEPT)
def _copy(database: str, dialect: str) -> Copy:
    return Copy(json.loads(database), dialect)


def _read(database: Any) -> tuple[dict[str, list[str]], str]:
    """The columns of each table, and the dialect."""
    if isinstance(database, str) and database.lstrip().startswith("{"):
        try:
            database = json.loads(database)
        except ValueError as error:
            raise ValueError(f"database={database[:60]!r} is no JSON: {error}") from None
    if isinstance(database, Mapping):
        return _checked(database), "sqlite"
    if isinstance(database, str) and "://" in database:
        return _from_url(database)
    if not isinstance(database, (str, os.PathLike)) or not str(database):
        raise ValueError(f"database={database!r} must be the path of a SQLite file, a URL, or a dict of tables")
    return _from_file(Path(database)), "sqlite"


def _checked(tables: Mapping[Any, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for table, columns in tables.items():
        names = list(columns) if isinstance(columns, (list, tuple, Mapping)) else []
        if not names or not all(isinstance(name, str) and name and "\n" not in name for name in (table, *names)):
            raise ValueError(f"database has {table!r}: {columns!r}; it must have the names of its columns, in a list")
        found[table] = names
    for what, names in [("tables", list(found)), *((f"columns in {table}", names) for table, names in found.items())]:
        if len({name.lower() for name in names}) < len(names):
            raise ValueError(f"database has two {what} of one name, in small letters; SQLite takes them for the same")
    if not found:
        raise ValueError("database has no table; there is nothing to ask it")
    return found


def _from_file(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        raise ValueError(f"database={str(path)!r} is no file; check the path")
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            listed = (
                "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND substr(name, 1, 7) != 'sqlite_'"
            )
            names = connection.execute(listed)
            ask = "SELECT name FROM pragma_table_info(?)"
            tables = {name: [row[0] for row in connection.execute(ask, (name,))] for (name,) in names.fetchall()}
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise ValueError(f"database={str(path)!r} cannot be read as SQLite ({error})") from None
    return _checked(tables)


def _from_url(url: str) -> tuple[dict[str, list[str]], str]:
    try:
        import sqlalchemy
    except ImportError as error:
        raise MissingExtraError("sqlalchemy", "sql", "reading the tables of a database by its URL") from error
    try:
        parsed = sqlalchemy.make_url(url)
        engine = sqlalchemy.create_engine(parsed)
        try:
            inspector = sqlalchemy.inspect(engine)
            names = [*inspector.get_table_names(), *inspector.get_view_names()]
            tables = {name: [str(column["name"]) for column in inspector.get_columns(name)] for name in names}
        finally:
            engine.dispose()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        shown = url.partition("://")[0] + "://…"  # the rest may hold a password
        raise ValueError(f"database={shown} cannot be read ({type(error).__name__}: {_line(error)})") from None
    return _checked(tables), "sqlite" if parsed.get_backend_name() == "sqlite" else STANDARD


def _line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split())[:200]
