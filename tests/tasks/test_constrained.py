"""Constrained tasks: what the constraint lets through the judge finds valid, and the judges know wrong from right."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from textguide.constraints import Constraint, Session, Vocabulary

pytest.importorskip("llguidance")
pytest.importorskip("datasets")

from textguide.tasks import constrained
from textguide.tasks.constrained import json_documents, pattern_matching, text_to_sql
from textguide.tasks.constrained.sql_grammar import sql_grammar

DATA = os.environ.get("TEXTGUIDE_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="TEXTGUIDE_DATA is not set: the data files are not there")
BYTES = Vocabulary((b"", *(bytes([byte]) for byte in range(256))), frozenset([0]))


def wander(constraint: Constraint, seed: int, steps: int = 60, vocabulary: Vocabulary = BYTES) -> str | None:
    """A random complete text: short ones are likely, for the end is as likely as the rest together."""
    rng = random.Random(seed)
    session: Session = constraint.start(vocabulary)
    for _ in range(steps):
        mask = session.mask()
        assert mask is not None
        tokens = [token for token in mask.nonzero().flatten().tolist() if token]
        if mask[0] and (not tokens or rng.random() < 0.3):
            return session.text.decode()
        if not tokens:
            return None
        session.advance(rng.choice([token for token in tokens if token <= 128] or tokens))
    return None


@needs_data
@pytest.mark.parametrize("name", sorted(constrained.TASKS))
def test_items(name: str) -> None:
    task = constrained.TASKS[name]()
    items = task.items()
    assert items == task.items()
    assert len({item.name for item in items}) == len(items)
    assert len(items) == {"json": 202, "molecules": 100, "patterns": 90, "sql": 39}[name]
    for item in items:
        assert [message["role"] for message in item.messages] == (
            ["system"] + ["user", "assistant"] * (len(item.messages) // 2 - 1) + ["user"]
        )
        assert item.text.endswith(f"{item.messages[-1]['content']}\n\n### Answer\n")
    bad = task.check(items[0], "\x00 this is nothing")
    assert tuple(bad) == task.measures
    assert set(bad.values()) == {0.0}


def judged(
    task: constrained.ConstrainedTask, measure: str, seeds: int, items: slice, steps: int = 60
) -> tuple[int, list[Any]]:
    checked, wrong = 0, []
    for item in task.items()[items]:
        for seed in range(seeds):
            text = wander(task.constraint(item), seed, steps)
            if text is not None:
                checked += 1
                if task.check(item, text)[measure] != 1.0:
                    wrong.append((item.answer, text))
    return checked, wrong


@needs_data
def test_texts_of_the_pattern_engine_match_for_the_judge() -> None:
    checked, wrong = judged(constrained.PatternMatching(), "valid", 8, slice(None))
    assert wrong == []
    assert checked > 300


@needs_data
def test_documents_of_the_schema_engine_are_valid_for_the_judge() -> None:
    checked, wrong = judged(constrained.JSONDocuments(), "valid", 1, slice(None), steps=150)
    assert wrong == []
    assert checked > 30


@needs_data
def test_queries_of_the_grammar_run() -> None:
    """What the grammar cannot know (which tables a query has) SQLite does; syntax is never the reason."""
    task = constrained.TextToSQL()
    reasons = []
    for seed in range(300):
        text = wander(task.constraint(task.items()[0]), seed, steps=300)
        if text is not None:
            try:
                text_to_sql.run(task._path, text)
            except sqlite3.Error as error:
                reasons.append(str(error))
    assert len(reasons) > 20
    assert [reason for reason in reasons if "syntax" in reason or "unrecognized" in reason] == []


@needs_data
def test_queries_whose_columns_are_scoped_run() -> None:
    task = constrained.TextToSQL(scoped=True)
    # Words instead of bytes, because almost no random letters are a name of the database.
    words = ["SELECT ", "count(*) ", "DISTINCT ", "name ", "age ", "singer.age ", "T1.name ", "singer_id ", ", ", "1 "]
    words += [
        "FROM ",
        "singer ",
        "stadium ",
        "AS T1 ",
        "JOIN ",
        "ON ",
        "WHERE ",
        "= ",
        "> ",
        "AND ",
        "ORDER BY ",
        "LIMIT ",
    ]
    vocabulary = Vocabulary((b"", *(word.encode() for word in words)), frozenset([0]))
    texts = [wander(task.constraint(task.items()[0]), seed, 40, vocabulary) for seed in range(100)]
    written = [text for text in texts if text is not None]
    assert written
    for text in written:
        text_to_sql.run(task._path, text)


@needs_data
@pytest.mark.parametrize("scoped", [False, True])
def test_reference_queries_are_in_the_grammar_and_right(scoped: bool) -> None:
    task = constrained.TextToSQL(scoped=scoped)
    items = task.items()
    session = task.constraint(items[0]).start(BYTES)
    examples = [query for _, query in text_to_sql.EXAMPLES]
    for query in [*examples, *(item.answer for item in items)]:
        assert session.is_complete(query.encode()), query
    for item in items:
        assert task.check(item, item.answer) == {"right": 1.0, "valid": 1.0}
        assert text_to_sql.run(task._path, item.answer)
        assert item.answer not in examples
    # An answer to another question is wrong, unless it gives the same rows.
    wrong = sum(task.check(item, items[0].answer)["right"] == 0.0 for item in items)
    assert wrong >= len(items) - 4


@needs_data
def test_molecules() -> None:
    pytest.importorskip("rdkit")
    pytest.importorskip("partialsmiles")
    task = constrained.Molecules(count=2, shown=3)
    first, second = task.items()
    assert first.answer != second.answer
    shown = first.answer[0]
    session = task.constraint(first).start(BYTES)
    for smiles in first.answer:
        assert session.is_complete(smiles.encode())
        assert all(session.is_prefix(smiles[:n].encode()) for n in range(len(smiles)))
    assert not session.is_prefix(b"C C")
    assert not session.is_complete(b"C%")
    assert task.check(first, shown)["new"] == 0.0
    assert task.check(first, "CCO") == {"valid": 1.0, "quality": pytest.approx(0.4068, abs=1e-3), "new": 1.0}
    for text in ["", "C1", "hello", "C(C)(C)(C)(C)C", "CC O", "CCO\n", "é"]:
        assert task.check(first, text) == {"valid": 0.0, "quality": 0.0, "new": 0.0}, text
    reference = task.reference()
    assert reference["valid"] == 1.0
    assert 0.3 < reference["quality"] < 0.9
    with pytest.raises(ValueError, match="shown=99 is more than the 30"):
        constrained.Molecules(shown=99).items()


@needs_data
def test_patterns_of_every_kind() -> None:
    task = constrained.PatternMatching(every=True)
    items = {item.answer: item for item in task.items()}
    assert len(items) == 300
    item = items[r"^\d{3}(-| )\d{3}\1\d{4}$"]
    session = task.constraint(item).start(BYTES)
    assert session.mask() is None
    assert session.is_prefix(b"123-456-")
    assert not session.is_prefix(b"123-456 ")
    assert session.is_complete(b"123-456-7890")
    assert not session.is_complete(b"123-456-789")
    assert task.check(item, "123 456 7890") == {"valid": 1.0}
    assert task.check(item, "123 456-7890") == {"valid": 0.0}


def test_the_judge_of_patterns_gives_up_on_patterns_that_explode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern_matching, "SECONDS", 0.05)
    assert not pattern_matching.matches(r"(?:a|a|b?a)+c", "a" * 60)


@pytest.mark.parametrize(
    ("schema", "document", "valid"),
    [
        ({"type": "integer"}, 1, True),
        ({"type": "integer"}, "1", False),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}, 1, False),
    ],
)
def test_the_judge_of_documents(schema: Any, document: Any, valid: bool) -> None:
    pytest.importorskip("jsonschema")
    assert json_documents.validates(schema, document) == valid


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "a b%.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE t (n INT, x REAL); INSERT INTO t VALUES (1, 0.1), (2, 0.2);")
    connection.close()
    return path


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM t", "DROP TABLE t", "INSERT INTO t VALUES (3, 3)", "PRAGMA query_only = OFF", "ATTACH 'x.db' AS x",
        "SELECT 1; SELECT 2", "SELECT 1; DROP TABLE t", "VACUUM", "CREATE TABLE u (n)", "SELECT load_extension('x')",
        "", " ", "-- nothing", "SELECT missing FROM t", "nonsense", "SELECT \x00", "BEGIN", "SELECT '\ud800'",
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n FROM c",
    ],
)  # fmt: skip
def test_queries_that_do_anything_but_read_are_errors(query: str, database: Path, tmp_path: Path) -> None:
    before = database.read_bytes()
    with pytest.raises(sqlite3.Error):
        text_to_sql.run(database, query)
    assert database.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [database.name]


def test_queries_that_take_too_long_are_errors(database: Path) -> None:
    cross = ", ".join(f"t AS t{i}" for i in range(30))
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        text_to_sql.run(database, f"SELECT count(*) FROM {cross}", seconds=0.05)
    assert len(text_to_sql.run(database, f"SELECT 1 FROM {cross}")) == text_to_sql.ROWS


@pytest.mark.parametrize(
    ("found", "wanted", "in_order", "same"),
    [
        ([(1,), (2,)], [(2,), (1,)], False, True),
        ([(1,), (2,)], [(2,), (1,)], True, False),
        ([(1,), (1,)], [(1,)], False, False),
        ([(0.1 + 0.2,)], [(0.3,)], True, True),
        ([(2.0,)], [(2,)], True, True),
        ([("2",)], [(2,)], True, False),
        ([(None, b"x")], [(None, b"x")], False, True),
    ],
)
def test_same_rows(found: Any, wanted: Any, in_order: bool, same: bool) -> None:
    assert text_to_sql.same_rows(found, wanted, in_order) == same


def test_which_queries_ask_for_an_order() -> None:
    assert text_to_sql.ordered("SELECT a FROM t  ORDER\nBY a")
    assert not text_to_sql.ordered("SELECT a FROM (SELECT a FROM t ORDER BY a)")
    assert not text_to_sql.ordered("SELECT a FROM t")


@pytest.mark.parametrize(("tables", "message"), [({}, "must have a table"), ({"t": []}, "must have a table")])
def test_databases_without_a_grammar(tables: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sql_grammar(tables)


@pytest.mark.parametrize("name", sorted(constrained.TASKS))
def test_missing_data_is_named(name: str, tmp_path: Path) -> None:
    make: Callable[[Any], constrained.ConstrainedTask] = constrained.TASKS[name]
    with pytest.raises(ValueError, match=r"the file '.*' is missing in it"):
        make(tmp_path).items()
