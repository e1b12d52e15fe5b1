"""``textguide generate`` under a constraint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .conftest import Run

PATTERN = "[ab]{1,3}"
NEW = ("--max-new-tokens", "5", "--seed", "1")


def test_particles_are_weighed_and_one_is_drawn(run: Run) -> None:
    outcome = run("generate", "hello ", "--regex", PATTERN, "--particles", "8", *NEW)
    assert outcome.code == 0
    assert re.fullmatch(f"hello {PATTERN}\n", outcome.out)
    assert "of 8 texts finished" in outcome.err
    assert "log evidence" in outcome.err
    assert re.search(r"of 8 particles, effective sample size [\d.]+, distinct texts \d, ancestors \d", outcome.err)


def test_a_pattern_that_needs_backtracking(run: Run) -> None:
    pattern = r"([ab])\1\b"
    outcome = run("generate", "hello ", "--regex", pattern, "--particles", "8", *NEW)
    assert outcome.code == 0
    assert outcome.out in ("hello aa\n", "hello bb\n")
    outcome = run("generate", "hello ", "--regex", "([ab", "--particles", "8", *NEW)
    assert outcome.code == 2
    assert "--regex ([ab: pattern='([ab' cannot be used: unterminated character set" in outcome.error


def test_json_lists_every_particle(run: Run) -> None:
    outcome = run("generate", "hello ", "--regex", PATTERN, "--particles", "8", "--json", *NEW)
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(rows) == 8
    for row in rows:
        assert row["guidance"]["method"] == "awrs"
        assert (row["log_weight"] is not None) == row["finished"] == (row["unfinished_because"] is None)
        assert not row["finished"] or re.fullmatch(PATTERN, row["text"])
    assert any(row["finished"] for row in rows)
    texts = {row["text"] for row in rows if row["finished"]}
    assert {row["distinct_texts"] for row in rows} == {len(texts)}
    assert all(len(texts) <= 8 >= row["ancestors"] >= 1 for row in rows)


def test_all_particles_and_several_prompts(run: Run) -> None:
    outcome = run("generate", "a", "b", "--regex", PATTERN, "--particles", "4", "--all-particles", *NEW)
    assert len(re.findall(r"^\[\d\] log weight", outcome.out, re.MULTILINE)) == 8
    outcome = run("generate", "a", "b", "--regex", PATTERN, "--particles", "4", *NEW)
    assert re.findall(r"^\[\d\]$", outcome.out, re.MULTILINE) == ["[1]", "[2]"]


def test_masking_and_guidance_beside_it(run: Run) -> None:
    outcome = run("generate", "hello", "--regex", "[ab]{5}", "--constraint-method", "mask", "--scale", "2", *NEW)
    assert re.fullmatch("hello[ab]{5}\n", outcome.out)
    assert "extra passes" in outcome.err


def test_free_text_before_the_form(run: Run) -> None:
    outcome = run("generate", "hello ", "--regex", "b{1,3}", "--after", "regex:.", "--particles", "8", *NEW)
    assert outcome.code == 0, outcome.err
    assert re.fullmatch("hello .b{1,3}\n", outcome.out)


def test_a_schema_from_a_file(run: Run, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [1, 22]}')
    outcome = run("generate", "a", "--json-schema", str(schema), "--json-whitespace", "none", "--particles", "4", *NEW)
    assert outcome.out in ("a1\n", "a22\n")


@pytest.mark.parametrize("lookahead", ["automaton", "none"])
def test_looking_ahead(run: Run, lookahead: str) -> None:
    outcome = run("generate", "a", "--regex", "b+", "--lookahead", lookahead, "--particles", "4", *NEW)
    assert outcome.code == 0, outcome.err
    assert re.fullmatch("ab+\n", outcome.out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--particles", "3"], "--particles needs a constraint"),
        (["--after", "x"], "--after needs a constraint"),
        (["--lookahead", "automaton"], "--lookahead needs a constraint"),
        (["--regex", "a", "--lookahead", "far"], "lookahead='far' must be one of auto, automaton"),
        (["--regex", "a", "--after", "regex:(", "--max-new-tokens", "5"], "after='regex:(' is not a valid pattern"),
        (["--constraint-method", "mask"], "--sampler needs a constraint"),
        (["--regex", "a", "--particles", "0"], "--particles=0"),
        (["--regex", "a", "--particles", "2", "--constraint-method", "mask"], "particles=2 needs weights"),
        (["--regex", "a(", "--particles", "2"], "--regex"),
        (["--regex", "a", "--particles", "2", "--stream"], "--stream excludes --particles"),
    ],
)
def test_errors(run: Run, arguments: list[str], message: str) -> None:
    outcome = run("generate", "a", *arguments)
    assert outcome.code == 2
    assert message in outcome.error
