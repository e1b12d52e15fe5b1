"""Queries of a database: every random query is judged as SQLite judges it on the tables themselves."""

from __future__ import annotations

import json
import os
import random
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from textguide.constraints import SQL, Session, Vocabulary, from_dict, resolve
from textguide.constraints.sql.query import Query

from .walks import BYTES, compare

pytest.importorskip("llguidance")

TABLES = {"singer": ["Name", "Age", "ID"], "concert": ["Title", "Year", "ID"], "plays": ["ID", "singer", "Name"]}
COLUMNS = sorted({column for columns in TABLES.values() for column in columns})


def connected() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    for table, columns in TABLES.items():
        connection.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
    return connection


class Writer:
    """Random queries, of which many name what is not at hand; ``parts`` are texts that must compile too."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.parts: list[str] = []

    def query(self) -> str:
        text = self.select("", 0)
        if self.draw.random() < 0.2:
            text += self.draw.choice([" UNION ", " EXCEPT ", " INTERSECT "]) + self.select("", 0)
        elif self.draw.random() < 0.3:
            text += " ORDER BY " + self.column(self.last)
        self.parts.append(text)
        return text

    def select(self, outer: str, depth: int) -> str:
        draw, close = self.draw, ")" * depth
        names: list[tuple[str, str]] = []  # what a table is called, and the table
        source = ""
        for number in range(draw.choice([1, 1, 2, 3])):
            table = draw.choice(list(TABLES))
            alias = draw.choice(["", f"T{number + 1}", f"T{number + 1}", "T1"])
            names.append((alias or table, table))
            place = f"{table} AS {alias}" if alias else table
            if number:
                join = draw.choice([" JOIN ", " LEFT JOIN "])
                source += f"{join}{place} ON {self.column(names)} = {self.column(names)}"
                self.parts.append(f"{outer}SELECT 1 FROM {source}{close}")
            else:
                source = place
        count = 1 if depth else draw.choice([1, 1, 2])
        items = ", ".join(
            draw.choice(["{}", "{}", "count({})", "max(DISTINCT {})"]).format(self.column(names)) for _ in range(count)
        )
        text = f"SELECT {items} FROM {source}"
        self.last = names
        if draw.random() < 0.5:
            text += f" WHERE {self.column(names)} "
            kind = draw.choice(["= 1", "IS NOT NULL", "LIKE 'a%'", "BETWEEN 1 AND 2", "= ", "IN "])
            text += kind
            if kind == "= ":
                text += self.column(names)
            elif kind == "IN ":
                text += f"({self.select(outer + text + '(', depth + 1)})" if depth < 2 else "(SELECT ID FROM concert)"
        if draw.random() < 0.3:
            text += f" GROUP BY {self.column(names)}"
        self.last = names
        return text

    def column(self, names: list[tuple[str, str]]) -> str:
        """Mostly a column of these tables, sometimes of none."""
        draw = self.draw
        name, table = draw.choice(names)
        column = draw.choice(TABLES[table] if draw.random() < 0.9 else COLUMNS)
        return draw.choice([column, f"{name}.{column}", f"{name}.{column}"] + ["T3." + column] * (draw.random() < 0.1))


def compiles(connection: sqlite3.Connection, query: str) -> bool:
    try:
        connection.execute(f"EXPLAIN {query}")
    except sqlite3.Error:
        return False
    return True


def compared(session: Session, count: int) -> Counter[bool]:
    connection, verdicts = connected(), Counter[bool]()
    for seed in range(count):
        writer = Writer(seed)
        text = writer.query()
        valid = all(compiles(connection, part) for part in writer.parts)
        verdicts[valid] += 1
        assert session.is_complete(text.encode()) == valid, text
        if valid:
            for end in range(len(text) + 1):
                assert session.is_prefix(text[:end].encode()), (text[:end], text[end:])
    return verdicts


def test_every_query_is_judged_as_sqlite_judges_it() -> None:
    verdicts = compared(SQL(TABLES).start(BYTES), 200)
    assert min(verdicts.values()) > 40


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("_compiles", "SELECT Title FROM singer WHERE "),
        ("_syntax_follows", "SELECT 1 1 "),
        ("_is_name", "SELECT Name FROM singer WHERE Title "),
        ("_is_separate", "SELECT Name FROM singer WHERE Age = 1AND "),
        ("_pending_fits", "SELECT Name FROM sung"),
    ],
)
def test_what_is_not_checked_is_missed(method: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the checks decides something: without it a text goes on that must not."""
    assert not SQL(TABLES).start(BYTES).is_prefix(text.encode())
    with monkeypatch.context() as patch:
        patch.setattr(Query, method, lambda *_: True)
        if method == "_is_name":
            patch.setattr(Query, "_compiles", lambda *_: True)
        assert SQL(TABLES).start(BYTES).is_prefix(text.encode())


# As models write them. SQLite takes the first list, and rejects the second one or would do more than read.
VALID = (
    "SELECT c.Title FROM concert AS c",
    "SELECT c.Title FROM concert c JOIN plays p ON p.ID = c.ID WHERE p.Name LIKE 'A%'",
    "SELECT Name FROM singer WHERE Age IN (20, 30)",
    "SELECT Name, CASE WHEN Age > 30 THEN 'old' ELSE 'young' END AS age_group FROM singer",
    "SELECT Age AS last FROM singer ORDER BY last",  # names that are keywords elsewhere
    "SELECT Age last FROM singer ORDER BY last",
    "SELECT last.Age FROM singer last WHERE last.Age > 2",
    "WITH first AS (SELECT Age FROM singer) SELECT Age FROM first",
    "WITH old AS (SELECT Name, Age FROM singer WHERE Age > 40) SELECT Name FROM old ORDER BY Age DESC",
    "SELECT Name, Age * 2 + 1 AS doubled FROM singer WHERE Age % 2 = 0",
    "SELECT upper(Name) || '!' FROM singer WHERE length(Name) > 3",
    "SELECT strftime('%Y', Year) FROM concert",
    "SELECT Name, row_number() OVER (PARTITION BY Age ORDER BY Name) AS r FROM singer",
    "SELECT Name FROM singer UNION ALL SELECT Title FROM concert",
    "SELECT a.Name FROM (SELECT Name, Age FROM singer) AS a WHERE a.Age > 3",
    "SELECT Name, (SELECT count(*) FROM plays WHERE plays.singer = s.ID) AS n FROM singer s ORDER BY n",
    "SELECT Name FROM singer WHERE EXISTS (SELECT 1 FROM plays WHERE plays.singer = singer.ID)",
    "SELECT COUNT (DISTINCT Name) FROM singer GROUP BY Age HAVING count(*) >= 2",
    "SELECT coalesce(Name, 'none'), round(avg(Age), 2) FROM singer WHERE NOT Age IS NULL",
    "SELECT CAST(Age AS REAL) / 2 FROM singer LIMIT 5 OFFSET 2",
    "SELECT s.Name, t.Name FROM singer s, singer t WHERE s.Age BETWEEN t.Age AND t.Age + 5",
    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 5) SELECT x FROM n",
    "SELECT sum(Age) OVER w FROM singer WINDOW w AS (ORDER BY ID ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)",
    "SELECT `Title`\nFROM [concert]\nWHERE Year = 2014;",
    "SELECT avg(n) FROM (SELECT count(*) AS n FROM plays GROUP BY singer)",
)
INVALID = (
    "SELECT nope FROM singer", "SELECT Title FROM singer", "SELECT ID FROM singer JOIN plays ON singer.ID = 1",
    "SELECT x.Name FROM singer AS s", "SELECT foo(Name) FROM singer", "SELECT Name FROM singer WHERE Age IN (20,",
    "SELECT Name FROM singer WHERE Title = 1", "SELECT upper(Name, 1) FROM singer", "SELECT Name FROM nope",
    "SELECT CASE WHEN 1 THEN 2 FROM singer", "SELECT Name FROM singer GROUP BY nope",
    "SELECT max(ID) OVER v FROM singer",
    "SELECT Name FROM singer UNION SELECT Name, Age FROM singer", "SELECT Name FROM singer WHERE count(*) > 1",
    "SELECT Name FROM singer LIMIT 1 UNION SELECT 'a'", "SELECT Name FROM singer s WHERE singer.Age = 1",
)  # fmt: skip
REFUSED = (
    "DELETE FROM singer", "WITH a AS (SELECT 1) DELETE FROM singer", "PRAGMA table_info(singer)",
    "SELECT Name FROM singer; DROP TABLE singer", "SELECT Name FROM singer -- x", "SELECT Name FROM singer /* x */",
    "SELECT Name FROM singer WHERE Age = ?", "SELECT load_extension('a')",
    "SELECT sql FROM sqlite_master", "VALUES (1)",
)  # fmt: skip


@pytest.mark.parametrize("text", VALID)
def test_sql_as_models_write_it(text: str) -> None:
    assert compiles(connected(), text)
    names = "any" if "avg(n)" in text else "schema"
    session = SQL(TABLES, columns=names).start(BYTES)
    assert session.is_complete(text.encode())
    assert all(session.is_prefix(text[:end].encode()) for end in range(len(text) + 1))
    assert names == "schema" or not SQL(TABLES).start(BYTES).is_prefix(b"SELECT avg(n)")


@pytest.mark.parametrize("text", INVALID + REFUSED)
@pytest.mark.parametrize("columns", ["schema", "any"])
def test_sql_that_is_no_query_of_the_database(text: str, columns: str) -> None:
    if text in INVALID:
        assert not compiles(connected(), text)
    assert not SQL(TABLES, columns=columns).start(BYTES).is_complete(text.encode())


SPIDER = Path(os.environ.get("TEXTGUIDE_DATA", "")) / "spider"


@pytest.mark.skipif(not (SPIDER / "dev.json").is_file(), reason="TEXTGUIDE_DATA has no spider/ (dev.json, tables.json)")
def test_gold_queries_of_spider() -> None:
    """Every tenth query of Spider's development set, 57 in 20 databases, and all starts of it."""
    databases = {}
    for described in json.loads((SPIDER / "tables.json").read_text()):
        tables: dict[str, list[str]] = {name: [] for name in described["table_names_original"]}
        for table, column in described["column_names_original"][1:]:
            tables[described["table_names_original"][table]].append(column)
        databases[described["db_id"]] = {name: tables[name] for name in tables if not name.startswith("sqlite_")}
    rows = json.loads((SPIDER / "dev.json").read_text())
    queries = list(dict.fromkeys((row["db_id"], row["query"]) for row in rows))[::10]
    assert len(queries) > 50
    for database, query in queries:
        session = SQL(databases[database]).start(BYTES)
        assert session.is_complete(query.encode()), query
        assert all(session.is_prefix(query[:end].encode()) for end in range(len(query))), query


@pytest.mark.parametrize(
    ("text", "is_prefix"),
    [
        ("SELECT Title FROM singer ", True), ("SELECT Title FROM singer J", True),
        ("SELECT Title FROM singer W", True), ("SELECT Title FROM singer WHERE ", False),
        ("SELECT Title FROM singer)", False),
        ("SELECT Title FROM singer WHEREVER", False), ("SELECT w.Age FROM singer wh", True),
        ("SELECT Name FROM singer JOIN plays USING (Name) ", True),
        ("SELECT Name FROM singer JOIN plays WHERE ", False), ("SELECT Name FROM singer JOIN co", True),
        ("SELECT T1.Title FROM singer AS T2", True), ("SELECT T1.Title FROM singer AS T1 WHERE ", False),
        ("SELECT Name FROM singer WHERE Titl", False), ("SELECT Name FROM singer WHERE Na", True),
        ("SELECT Name FROM singer WHERE con", False), ("SELECT Name FROM singer WHERE concert.", False),
        ("SELECT Name FROM singer AS T1 JOIN concert AS T2 ON T1.Y", False),
        ("SELECT Name FROM singer AS T1 JOIN concert AS T2 ON T3", False),
        ("SELECT Age FROM singer WHERE ID IN (SELECT Age", True),
        ("SELECT Age FROM singer WHERE ID IN (SELECT Age FROM concert W", True),  # the outer one's
        ("SELECT sum(*", False), ("SELECT Age FROM singer ORDER BY Age UNION", False), ("DELETE", False),
        ("SELECT Age FROM singer WHERE Age = 1.5 AND T1", False), ("SELECT ID FROM concert; ", False),
        ('SELECT Age FROM singer WHERE Name = "no name', True), ("SELECT Age FROM singer WHERE max(Age) ", False),
    ],
)  # fmt: skip
def test_beginnings(text: str, is_prefix: bool) -> None:
    assert SQL(TABLES).start(BYTES).is_prefix(text.encode()) == is_prefix


KEYWORDS = (
    "SELECT", "DISTINCT", "FROM", "WHERE", "GROUP", "BY", "HAVING", "ORDER", "JOIN", "LEFT", "ON", "AS", "AND", "NOT",
    "IS", "NULL", "LIKE", "count", "max", "IN", "TERSECT", "ASC", "LIMIT", "1", "'a'", "=", "(", ")", ".", ",", "*",
    " ", *(f"T{number}" for number in range(1, 10)),
)  # fmt: skip


def words() -> Vocabulary:
    parts = [*KEYWORDS, *TABLES, *COLUMNS]
    return Vocabulary((b"", *(part.encode() for part in parts)), frozenset([0]))


def test_beginnings_can_be_ended() -> None:
    """Random walks over words that are allowed, and over bytes if no word is, always have something that may follow."""
    vocabulary = words()
    pieces = [token for token in vocabulary.tokens if token]
    letters = [bytes([byte]) for byte in range(32, 127)]
    for seed in range(60):
        draw, session = random.Random(seed), SQL(TABLES).start(vocabulary)
        for _ in range(70):
            ranked = sorted(pieces, key=lambda piece: draw.random() + (piece in b",*"))
            ranked += draw.sample(letters, len(letters))
            piece = next((one for one in ranked if session.is_prefix(session.text + one)), None)
            if piece is None:
                assert session.is_complete(session.text), session.text
                break
            session.write(piece)


@pytest.mark.parametrize(
    "text",
    ["SELECT 1 AS a WHERE T1.ASC", "SELECT T1.ASC", "SELECT Name x WHERE", "SELECT Title t FROM singer s WHERE",
     "SELECT Name FROM singer s LEFT max", "SELECT Name FROM singer.Age", "SELECT Name FROM singer s NOT ",
     "SELECT Name FROM singer LEFT 'a'", "SELECT Name FROM singer WHERE asc "],
)  # fmt: skip
def test_beginnings_that_nothing_can_end(text: str) -> None:
    assert not SQL(TABLES).start(BYTES).is_prefix(text.encode())


@pytest.mark.parametrize("seed", range(2))
def test_masks(seed: int) -> None:
    vocabulary, session = words(), SQL(TABLES).start(words())
    judge = SQL(TABLES).start(vocabulary)
    compare(session, vocabulary, judge.is_prefix, judge.is_complete, steps=6, seed=seed)
    text = b"SELECT Name FROM singer WHERE Name = 'a"
    session, judge = SQL(TABLES).start(BYTES), SQL(TABLES).start(BYTES)
    session.write(text)
    compare(session, BYTES, judge.is_prefix, judge.is_complete, steps=1, seed=seed)


def test_names_between_quotation_marks() -> None:
    tables = {"order": ["the date", "Über", 'a"b'], "Person": ["name"]}
    session = SQL(tables).start(BYTES)
    for text in (
        'SELECT "the date" FROM "order"',
        'SELECT T1."Über" FROM "order" AS T1 WHERE T1."a""b" = 1',
        "SELECT name FROM person",
    ):
        assert session.is_complete(text.encode()), text
        assert all(session.is_prefix(text.encode()[:end]) for end in range(len(text.encode()) + 1)), text
    assert not session.is_prefix(b"SELECT order ")
    standard = SQL(tables, dialect="standard").start(BYTES)
    assert standard.is_complete(b"SELECT name FROM \"Person\" WHERE name = 'a'")
    assert not standard.is_prefix(b"SELECT name FROM person")
    assert not standard.is_complete(b'SELECT name FROM "Person" WHERE name = "a"')


def test_databases(tmp_path: Path) -> None:
    path = tmp_path / "a b.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, x TEXT)")
    connection.execute("CREATE VIEW v AS SELECT x AS y FROM t")
    connection.execute("INSERT INTO t (x) VALUES ('secret')")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    constraint = SQL(path)
    assert constraint.tables == {"t": ["id", "x"], "v": ["y"]}
    assert constraint == SQL(str(path)) == SQL(constraint.tables) == SQL(constraint.database) == resolve(f"sql:{path}")
    assert from_dict(constraint.to_dict()) == constraint
    assert constraint.start(BYTES).is_complete(b"SELECT y FROM v JOIN t ON x = y")
    assert path.read_bytes() == before
    pytest.importorskip("sqlalchemy")
    assert SQL(f"sqlite:///{path}") == constraint
    with pytest.raises(ValueError, match=r"database=postgresql://… cannot be read") as caught:
        SQL("postgresql://me:hidden@nowhere.invalid/x")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("database", "message"),
    [
        ("nowhere.sqlite", "database='nowhere.sqlite' is not a file"), (__file__, "cannot be read as SQLite"),
        ({}, "no table"),
        ({"t": []}, "must have the names of its columns"), ({"t": ["a", "A"]}, "two columns in t of one name"),
        (3, "must be the path"), ("{", "is not valid JSON"), ({"t": ["a\n"]}, "must have the names"),
    ],
)  # fmt: skip
def test_what_is_no_database(database: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SQL(database)


def test_a_request_names_no_file() -> None:
    with pytest.raises(ValueError, match="must be the tables"):
        from_dict({"kind": "sql", "database": "/some/file"})
    with pytest.raises(ValueError, match="dialect='oracle' must be one of auto"):
        SQL(TABLES, dialect="oracle")
