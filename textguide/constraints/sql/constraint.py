"""SQL queries that a database can answer."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...support.checks import one_of
from ...support.errors import MissingExtraError
from ..base import Constraint, Session
from ..vocabulary import Vocabulary
from .database import EmptyDatabase
from .lexing import DIALECTS, STANDARD
from .query import Query
from .session import Queries, QuerySession

COLUMNS = ("schema", "any")
MAX_DATABASES = 8


@dataclass(frozen=True)
class SQL(Constraint):
    """SELECT queries over the tables and columns of one database, in the dialect of the installed SQLite.

    SQLite decides what is allowed, on an empty copy of the tables in memory; no query is ever run and no row is read.
    Its grammar reports the first token that cannot follow, so all of its SELECT is here: aliases, expressions, CASE,
    IN, functions, window functions, WITH, subqueries, UNION. Its compiler reports names that do not exist, as soon as
    nothing can mend them: inside a name after FROM, and for the columns of a list at the end of the FROM that follows
    it. A finished text is a member only if SQLite compiles it.

    What a member must not have, although SQLite takes it: statements that write, comments, parameters, a second
    statement, tables in brackets without SELECT, functions that return tables, strings of more than 100 characters,
    aliases of more than 40, and columns in ON of a table that only follows. An alias without AS does not start with a
    keyword that is allowed there, such as ``order``.

    A few errors only show later than they could, when no token can follow, so that the particle has weight 0: columns
    of a list that no set of tables has together, and lists of different lengths on the two sides of a UNION.

    Args:
        database: the path of a SQLite file, which is opened read-only; a URL of SQLAlchemy, such as
            ``postgresql://user@host/name``, from which the tables and views of the default schema are read; or the
            tables themselves, ``{"singer": ["Name", "Age"]}``, as a dict or JSON. The constraint only stores the names.
        dialect: ``sqlite``, or ``standard``: strings in single quotation marks only, and names with capital letters in
            double ones, as PostgreSQL requires. ``auto`` is ``standard`` for URLs of databases other than SQLite, and
            ``sqlite`` otherwise. SQLite compiles the queries in both cases, so stricter rules of other databases (types
            that can be compared, columns that are grouped) are not checked.
        columns: ``schema``: the columns of a list, which are written before their tables, have names of the database,
            or names that the query defined before, in a WITH. ``any``: they may also have names that a subquery in the
            FROM after them will define, ``SELECT avg(n) FROM (SELECT count(*) AS n …)``; then a wrong name in a list is
            only noticed at the end of its FROM.

    Raises:
        MissingExtraError: ``database`` is a URL, and SQLAlchemy is not installed.
        ValueError: ``database`` cannot be read or has no tables, or ``dialect`` or ``columns`` is unknown.

    Example:
        >>> SQL({"singer": ["Name", "Age"]}).tables
        {'singer': ['Name', 'Age']}
    """

    database: Any
    dialect: str = "auto"
    columns: str = "schema"

    kind = "sql"

    def __post_init__(self) -> None:
        one_of("dialect", self.dialect, ("auto", *DIALECTS))
        one_of("columns", self.columns, COLUMNS)
        tables, dialect = _read(self.database)
        object.__setattr__(self, "database", json.dumps(tables, ensure_ascii=False))
        object.__setattr__(self, "dialect", dialect if self.dialect == "auto" else self.dialect)

    @property
    def tables(self) -> dict[str, list[str]]:
        """The columns of each table."""
        tables: dict[str, list[str]] = json.loads(self.database)
        return tables

    def to_dict(self) -> dict[str, Any]:
        values = {"kind": self.kind, "database": self.tables, "dialect": self.dialect}
        return values if self.columns == "schema" else {**values, "columns": self.columns}

    @classmethod
    def build(cls, values: dict[str, Any]) -> Constraint:
        if not isinstance(values["database"], Mapping):
            raise ValueError(
                f"database={values['database']!r} of a constraint in JSON must be the tables, as in "
                '{"singer": ["Name", "Age"]}; SQL(path) reads them from a database'
            )
        return cls(**values)

    def start(self, vocabulary: Vocabulary) -> Session:
        start = Query(_empty_database(self.database, self.dialect), self.columns == "any")
        return QuerySession(Queries(start, vocabulary), b"")


@lru_cache(maxsize=MAX_DATABASES)
def _empty_database(database: str, dialect: str) -> EmptyDatabase:
    return EmptyDatabase(json.loads(database), dialect)


def _read(database: Any) -> tuple[dict[str, list[str]], str]:
    """The columns of each table, and the dialect."""
    if isinstance(database, str) and database.lstrip().startswith("{"):
        try:
            database = json.loads(database)
        except ValueError as error:
            raise ValueError(f"database={database[:60]!r} is not valid JSON: {error}") from None
    if isinstance(database, Mapping):
        return _checked_tables(database), "sqlite"
    if isinstance(database, str) and "://" in database:
        return _from_url(database)
    if not isinstance(database, (str, os.PathLike)) or not str(database):
        raise ValueError(f"database={database!r} must be the path of a SQLite file, a URL, or a dict of tables")
    return _from_file(Path(database)), "sqlite"


def _checked_tables(tables: Mapping[Any, Any]) -> dict[str, list[str]]:
    checked: dict[str, list[str]] = {}
    for table, columns in tables.items():
        names = list(columns) if isinstance(columns, (list, tuple, Mapping)) else []
        if not names or not all(isinstance(name, str) and name and "\n" not in name for name in (table, *names)):
            raise ValueError(f"database has {table!r}: {columns!r}; it must have the names of its columns, in a list")
        if table.lower().startswith("sqlite_"):
            raise ValueError(f"database has a table {table!r}, but SQLite keeps such names for itself; leave it out")
        checked[table] = names
    if not checked:
        raise ValueError("database has no tables, so no query is possible; pass one with tables")
    _check_distinct("tables", list(checked))
    for table, names in checked.items():
        _check_distinct(f"columns in {table}", names)
    return checked


def _check_distinct(kind: str, names: list[str]) -> None:
    if len({name.lower() for name in names}) < len(names):
        raise ValueError(f"database has two {kind} of one name, ignoring case; SQLite does not tell them apart")


def _from_file(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        raise ValueError(f"database={str(path)!r} is not a file; check the path")
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            # Tables whose names start with sqlite_ are SQLite's own.
            query = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND substr(name, 1, 7) != 'sqlite_'"
            tables = {}
            for (name,) in connection.execute(query).fetchall():
                rows = connection.execute("SELECT name FROM pragma_table_info(?)", (name,))
                tables[name] = [row[0] for row in rows]
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise ValueError(f"database={str(path)!r} cannot be read as SQLite ({error})") from None
    return _checked_tables(tables)


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
        shown = url.partition("://")[0] + "://…"  # the rest may contain a password
        raise ValueError(f"database={shown} cannot be read ({type(error).__name__}: {_first_line(error)})") from None
    return _checked_tables(tables), "sqlite" if parsed.get_backend_name() == "sqlite" else STANDARD


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split())[:200]
