"""``--regex``, ``--json-schema``, ``--grammar``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from textguide.cli import Parser, options
from textguide.cli.constraint_options import add_constraint, constraint
from textguide.constraints import Grammar, JSONSchema, Regex

pytest.importorskip("llguidance")


def parse(*argv: str) -> Any:
    parser = Parser(prog="textguide")
    add_constraint(parser)
    return constraint(parser.parse_args(argv))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "schema.json").write_text(json.dumps({"type": "null"}))
    (tmp_path / "rules.lark").write_text('start: "a"')
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "endless.lark").write_text('start: "a" start')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_what_the_arguments_stand_for() -> None:
    assert parse() is None
    assert parse("--regex", "[a-z]+") == Regex("[a-z]+")
    assert parse("--regex", "") == Regex("")
    assert parse("--json-schema", "schema.json") == JSONSchema({"type": "null"})
    assert parse("--json-schema", "schema.json", "--json-whitespace", "none").whitespace == "none"
    assert parse("--grammar", "rules.lark") == Grammar('start: "a"')
    assert parse("--constraint", "regex:a") == Regex("a")


@pytest.mark.parametrize("argv", [("--regex", "a"), ("--constraint", "regex:a")])
def test_a_constraint_alone_leaves_guidance_out(argv: tuple[str, str]) -> None:
    parser = Parser(prog="textguide")
    options.add_guidance(parser)
    add_constraint(parser)
    assert options.guidance(parser.parse_args(argv)).is_neutral
    assert not options.guidance(parser.parse_args(())).is_neutral


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--regex", "(?>a"], r"--regex \(\?>a: pattern=.* missing \)"),
        (["--json-schema", "none.json"], r"--json-schema none.json: schema='none.json' cannot be read"),
        (["--json-schema", "bad.json"], r"--json-schema bad.json: .* is not valid JSON"),
        (["--grammar", "none.lark"], r"--grammar none.lark: .* cannot be read"),
        (["--grammar", "endless.lark"], r"--grammar endless.lark: .* no text ends the rule start"),
        (["--constraint", "sql:none"], "--constraint sql:none: database='none' is not a file"),
        (["--regex", "a", "--json-whitespace", "none"], "--json-whitespace none needs --json-schema"),
    ],
)
def test_errors_name_the_argument(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(*argv)


@pytest.mark.usefixtures("folder")
def test_one_constraint_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--regex", "a", "--grammar", "rules.lark")
    assert caught.value.code == 2
    assert "--grammar: not allowed with argument --regex" in capsys.readouterr().err
