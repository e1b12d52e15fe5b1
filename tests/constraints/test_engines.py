"""What is common to the engines: caching, progress, missing packages, and xgrammar beside llguidance."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest
import rich.console

from textguide.constraints import AllOf, Regex, Vocabulary
from textguide.constraints.engines import llguidance_engine, progress
from textguide.constraints.engines import session as engine_session
from textguide.support.errors import MissingExtraError

from . import derivatives as d
from .walks import BYTES, SMALL, compare

pytest.importorskip("llguidance")

CASES = [
    ("a(b|é)*", d.then(d.text("a"), d.star(d.one_of("bé")))),
    ("[abc]{2,3}0?", d.then(d.repeat(d.one_of("abc"), 2, 3), d.repeat(d.text("0"), 0, 1))),
    ("(ab|a)+😀", d.then(d.repeat(d.either(d.text("ab"), d.text("a")), 1, None), d.text("😀"))),
    ("(a|b)*a(a|b)", d.then(d.star(d.one_of("ab")), d.then(d.text("a"), d.one_of("ab")))),
    ("", d.text("")),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("pattern", "oracle"), CASES)
def test_xgrammar_has_the_same_masks(pattern: str, oracle: d.Re, seed: int) -> None:
    pytest.importorskip("xgrammar")
    session = Regex(pattern, engine="xgrammar").start(SMALL)
    compare(session, SMALL, lambda t: d.is_prefix(oracle, t), lambda t: d.is_complete(oracle, t), seed=seed)


def test_xgrammars_refusals_name_the_argument() -> None:
    pytest.importorskip("xgrammar")
    with pytest.raises(ValueError, match=r"pattern='\(\?s:\.\)a' cannot be used: .*flag"):
        Regex("(?s:.)a", engine="xgrammar")
    with pytest.raises(ValueError, match="nothing satisfies it"):
        Regex(r"[^\s\S]", engine="xgrammar").start(SMALL)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [("(", "parenthesis is not closed"), ("a$b", "an anchor at 1"), (r"\bword", r"a word boundary (\b) at 0"),
     ("(?i)a", "Group modifier flag"), (r"\p{L}", "Unicode character class")],
)  # fmt: skip
def test_xgrammar_refuses_patterns_when_they_are_made(pattern: str, reason: str) -> None:
    pytest.importorskip("xgrammar")
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        Regex(pattern, engine="xgrammar")
    assert f"pattern={pattern!r} cannot be used" in str(caught.value)
    assert "cpp" not in str(caught.value)


def test_what_xgrammar_reads_in_another_way_is_spelled_for_it() -> None:
    pytest.importorskip("xgrammar")
    for pattern, inside, outside in (
        (r"\Aab\Z", b"ab", b"AabZ"),
        (".", b"a", b"\n"),
        ("a{,2}", b"aa", b"aaa"),
        ("(?P<x>a)", b"a", b"x"),
        ("[^.]", b"\n", b"."),
    ):
        session = Regex(pattern, engine="xgrammar").start(BYTES)
        assert session.is_complete(inside), pattern
        assert not session.is_complete(outside), pattern


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("pattern", "oracle"), CASES)
def test_a_pattern_goes_from_one_engine_to_another(pattern: str, oracle: d.Re, seed: int) -> None:
    pytest.importorskip("xgrammar")
    moved = Regex(pattern).on("xgrammar")
    assert moved == Regex(pattern, engine="xgrammar")
    compare(moved.start(SMALL), SMALL, lambda t: d.is_prefix(oracle, t), lambda t: d.is_complete(oracle, t), seed=seed)


def test_a_pattern_stays_where_another_engine_would_read_something_else() -> None:
    pytest.importorskip("xgrammar")
    # Digits, letters and blanks of all of Unicode here, of ASCII there.
    for pattern in (r"\d+", r"a[\w.]", r"[^\s]", r"\p{L}", "[[:alpha:]]", r"\h", "(?i)a", r"(a)\1", r"\bword"):
        one = Regex(pattern)
        assert one.on("xgrammar") is one, pattern
    assert Regex(r"\d").start(BYTES).is_prefix("\N{ARABIC-INDIC DIGIT ONE}".encode())
    assert not Regex(r"\d", engine="xgrammar").start(BYTES).is_prefix("\N{ARABIC-INDIC DIGIT ONE}".encode())


@pytest.mark.parametrize("name", ["llguidance", "xgrammar"])
def test_a_missing_package_names_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    extra = {"llguidance": "constraints"}.get(name, name)
    with pytest.raises(MissingExtraError, match=rf"needs {name}, which is not installed: .*textguide\[{extra}\]"):
        Regex("never compiled before", engine=name).start(SMALL)


def test_a_constraint_is_compiled_once_for_a_vocabulary() -> None:
    other = Vocabulary(SMALL.tokens, frozenset([0]))
    before = llguidance_engine.compile_grammar.cache_info().misses
    for vocabulary in (SMALL, SMALL, other, Vocabulary(SMALL.tokens, SMALL.ends)):
        Regex("compiled (once|twice)|a").start(vocabulary)
    assert llguidance_engine.compile_grammar.cache_info().misses == before + 2


def test_masks_are_kept_for_texts_that_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    allowed = llguidance_engine.MatcherState.allowed
    monkeypatch.setattr(llguidance_engine.MatcherState, "allowed", lambda self: asked.append(1) or allowed(self))
    monkeypatch.setattr(engine_session, "MAX_MASKS", 2)
    session = Regex("(a|b|kept)*").start(SMALL)
    asked.clear()
    twins = [session.fork() for _ in range(5)]
    for twin in twins:
        twin.advance(2)
        twin.mask()
    assert len(asked) == 1
    for _ in range(4):
        session.advance(3)
        session.mask()
    twins[0].mask()  # dropped meanwhile
    assert len(asked) == 6


def test_slow_work_shows_a_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    console = rich.console.Console(file=stream, force_terminal=True, width=80)
    monkeypatch.setattr(rich.console, "Console", lambda **options: console)
    with progress.show_if_slow("compiling schema=…", patience=0.01):
        time.sleep(0.5)
    assert "compiling schema=…: 0 s" in stream.getvalue()
    stream.truncate(0)
    with progress.show_if_slow("quick", patience=5):
        pass
    assert "quick" not in stream.getvalue()


def test_slow_work_shows_nothing_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.show_if_slow("compiling", patience=0.0):
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_a_dead_end_is_a_mask_without_tokens() -> None:
    """A vocabulary may lack what a text needs: the mask is empty then, and nothing is raised."""
    vocabulary = Vocabulary((b"", b"a", b"b"), frozenset([0]))
    session = Regex("ax|b").start(vocabulary)
    session.advance(1)
    assert session.mask().tolist() == [False, False, False]  # type: ignore[union-attr]
    assert session.is_prefix(b"ax")


def test_limits_of_the_engine_are_errors_and_no_hang() -> None:
    """Sixteen letters that all must come: 65,536 states, found as the text goes."""
    session = AllOf(*(Regex(f"(?s:.*){letter}(?s:.*)") for letter in "abc01defghijklmn")).start(SMALL)
    assert session.is_complete(b"nmlkjihgfed10cba")
    assert not session.is_complete(b"nmlkjihgfed10cb")


@pytest.mark.parametrize("limit", ["initial_lexer_fuel", "max_lexer_states", "step_lexer_fuel"])
def test_past_the_limits_of_the_engine(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llguidance_engine.LIMITS, limit, 10)
    with pytest.raises(ValueError, match="too large for the engine"):  # noqa: PT012
        session = Regex(f"(?s:.*)a(?s:.{{30}}){limit}").start(BYTES)
        for token in (98, 98, 99, 200, 100):
            session.mask()
            session.advance(token)
