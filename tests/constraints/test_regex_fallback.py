"""Patterns that no automaton takes: against ``regex.fullmatch``, and against all texts up to a length."""

from __future__ import annotations

import csv
import itertools
import os
import random
import re
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from textguide.constraints import AllOf, AnyOf, Not, Regex, UnsatisfiableError, Vocabulary, from_dict, resolve
from textguide.constraints.patterns.backtracking import Checker, checker
from textguide.constraints.utf8 import completions
from textguide.support.errors import MissingExtraError

from .members import Writer, changed
from .random_patterns import KINDS, Patterns
from .walks import BYTES, SMALL, compare

regex = pytest.importorskip("regex")
pytest.importorskip("llguidance")


def version_of(pattern: str) -> int:
    """Sets with operators are those of ``regex``'s version 1; for all else version 0 is Python's."""
    return int(regex.V1 if any(operator in pattern for operator in ("&&", "--[", r"--\p", "~~")) else regex.V0)


@cache
def task_patterns() -> list[str]:
    data = os.environ.get("TEXTGUIDE_DATA")
    if not data:
        pytest.skip("TEXTGUIDE_DATA is not set: the patterns are not there")
    with (Path(data) / "awrs" / "patterns.csv").open(encoding="utf-8") as stream:
        return [row["regex"] for row in csv.DictReader(stream)]


def prefixes(text: str) -> list[bytes]:
    return [text.encode()[:length] for length in range(len(text.encode()) + 1)]


def test_every_pattern_of_the_task_loads_and_agrees() -> None:
    """On members, members with a change, and random texts; every prefix of a member, in bytes, can go on."""
    engines = {Regex(pattern).engine: 0 for pattern in task_patterns()}
    empty, without_members = [], 0
    for number, pattern in enumerate(task_patterns()):
        rng = random.Random(number)
        constraint, judge = Regex(pattern), regex.compile(pattern, version_of(pattern))
        engines[constraint.engine] += 1
        try:
            session = constraint.start(BYTES)
        except UnsatisfiableError:
            empty.append(pattern)
            continue
        written = [Writer(pattern, version_of(pattern)).write(rng, "ab1" * (i % 2)) for i in range(30)]
        members = [text for text in dict.fromkeys(written) if judge.fullmatch(text)][:5]
        without_members += not members
        letters = [*dict.fromkeys("".join(written)), *"a1 é-"]
        near = [changed(text, rng, letters) for text in members for _ in range(6)]
        texts = [
            *members,
            *near,
            *written[:5],
            *("".join(rng.choices(letters, k=rng.randint(0, 6))) for _ in range(10)),
        ]
        for text in texts:
            matches = judge.fullmatch(text) is not None
            assert session.is_complete(text.encode()) == matches, (pattern, text)
            if matches:
                assert all(session.is_prefix(begun) for begun in prefixes(text)), (pattern, text)
    assert engines == {"llguidance": 92, "regex": 208}
    assert without_members < 10
    assert len(empty) == 2
    every = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    for pattern in empty:  # each is a single set, which holds nothing indeed
        assert pattern[0] == "["
        assert not any(map(regex.compile(pattern, regex.V1).fullmatch, every))


def test_what_python_takes_means_what_python_means() -> None:
    taken = 0
    for number, pattern in enumerate(task_patterns()):
        try:
            with warnings.catch_warnings():  # of sets that will mean something else one day, as those with operators do
                warnings.simplefilter("ignore", FutureWarning)
                python = re.compile(pattern)
        except re.error:
            continue
        if version_of(pattern) == regex.V1:
            continue
        taken += 1
        try:
            session = Regex(pattern).start(BYTES)
        except UnsatisfiableError:
            continue
        rng, writer = random.Random(number), Writer(pattern, regex.V0)
        for _ in range(12):
            text = "".join(character for character in writer.write(rng) if character.isascii())
            text = changed(text, rng, "a1 -") if rng.random() < 0.5 else text
            assert session.is_complete(text.encode()) == (python.fullmatch(text) is not None), (pattern, text)
    assert taken > 120


# -- small patterns against all texts ------------------------------------------------------------------------------


def viable(texts: list[str], matches: Any) -> tuple[set[str], set[str]]:
    """The members among ``texts``, and their prefixes."""
    members = {text for text in texts if matches(text)}
    return members, {member[:length] for member in members for length in range(len(member) + 1)}


def texts_over(letters: str, length: int) -> list[str]:
    return ["".join(text) for n in range(length + 1) for text in itertools.product(letters, repeat=n)]


@pytest.mark.parametrize("kinds", KINDS)
def test_random_patterns_lose_no_prefix(kinds: str) -> None:
    rng, texts, tried = random.Random(kinds), texts_over("ab-", 5), 0
    while tried < 250:
        pattern = rng.choice(["", "", "(?m)", "(?s)", "(?i)"]) + Patterns(rng, KINDS[kinds]).one()
        pattern += rng.choice(["", "", "$", r"\Z", "$|b"])
        try:
            judge = regex.compile(pattern)
            members, begun = viable(texts, lambda text: judge.fullmatch(text, timeout=0.1))  # noqa: B023
        except (regex.error, TimeoutError, MemoryError):  # errors within errors take for ever
            continue
        tried += 1
        asked = Checker(pattern)
        assert {text for text in texts if asked.matches(text)} == members
        assert [text for text in begun if not asked.is_prefix(text)] == [], pattern


@pytest.mark.parametrize(
    ("pattern", "letters"),
    [
        (r"\bab\b", "ab "),
        (r"a\b-b", "ab-"),
        (r"a\Bb", "ab-"),
        (r"(a|b)\1", "ab"),
        (r"(?P<x>a|bb)-(?P=x)", "ab-"),
        (r"(?>a|ab)b", "ab"),
        (r"(?>a+?)b", "ab"),
        (r"a{2,3}+b", "ab"),
        (r"(?|(a)|(b))\1", "ab"),
        (r"\((?R)?\)", "()"),
        (r"(?<x>a|b(?&x))", "ab"),
        (r"(a)?(?(1)b|-)", "ab-"),
        (r"(?(?=a)ab|b-)", "ab-"),
        (r"^((.)(?!\2))+$", "ab"),
        (r"^(?!.*(.).*\1)[ab-]+$", "ab-"),
        (r"\b(?!.*b)\w+\b", "ab-"),
        (r"(?i)(a)\1", "aAb"),
        (r"(?m)a$\n^b", "ab\n"),
        (r"a(?!$)\nb", "ab\n"),
        (r".*?(?<=b)", "ab"),
        (r"(?:..)+(?<=ab)", "ab"),
        (r"(?=.*b)(?:(a)|(b))+", "ab"),
        (r"\X\b-", "ae-"),
        (r"(a|b)\1$", "ab\n"),
        (r"^(?>ab|a)$|b\Z", "ab\n"),
        ("(?x) a # [\n \\b [ -] b", "ab -"),
    ],
)
def test_small_patterns_are_exact(pattern: str, letters: str) -> None:
    """No prefix is lost; and a text is taken for a prefix where none follows, if at all, for one character."""
    length = 6 if len(letters) < 3 else 5
    texts = texts_over(letters, length)
    session = Regex(pattern, engine="regex").start(
        Vocabulary((b"", *(letter.encode() for letter in letters)), frozenset([0]))
    )
    members, begun = viable(texts, regex.compile(pattern).fullmatch)
    assert {text for text in texts if session.is_complete(text.encode())} == members
    said = {text for text in texts if session.is_prefix(text.encode())}
    assert begun <= said
    short = {text for text in said - begun if len(text) <= length - 3}
    assert not {text for text in short if len(text) > 1 and text[:-1] in short}


@pytest.mark.parametrize("pattern", [r".*?(?<=b)", r"(?:..)+(?<=ab)", r"a\Bb", r"a(?!$)b", r"(?r)ab"])
def test_what_partial_matching_itself_loses(pattern: str) -> None:
    """Were this to fail one day, for every pattern, the rewriting for it could go."""
    judge = regex.compile(pattern)
    texts = texts_over("ab", 6)
    _, begun = viable(texts, judge.fullmatch)
    assert not all(judge.fullmatch(text, partial=True) for text in begun)
    assert all(Checker(pattern).is_prefix(text) for text in begun)


@pytest.mark.parametrize("pattern", [r"(?r)ab", r"(?w)a\bb", r"(?b)(?:ab){e<=1}", r"\b(?x: a b )", r"(?=a{e<=1})a"])
def test_where_nothing_is_known_of_prefixes_only_the_end_is_checked(pattern: str) -> None:
    session = Regex(pattern, engine="regex").start(SMALL)
    assert session.is_prefix(b"anything")
    assert session.is_prefix(b"\xc3")
    assert not session.is_prefix(b"\xff")
    assert not session.is_complete(b"anything")


# -- characters of which a text has the first bytes ----------------------------------------------------------------


def test_completions_are_the_characters_that_begin_so() -> None:
    for begun in (b"\xc3", b"\xdf", b"\xe0", b"\xe2\x82", b"\xed", b"\xed\x9f", b"\xf0", b"\xf0\x9f\x98", b"\xf4"):
        found = completions(begun)
        assert chr(found[0]).encode().startswith(begun)
        assert chr(found[-1]).encode().startswith(begun)
        for neighbour in (found[0] - 1, found[-1] + 1):
            if neighbour <= sys.maxunicode and not 0xD800 <= neighbour < 0xE000:
                assert not chr(neighbour).encode().startswith(begun)


FOLDING = [r"(?if)(?>ß)", r"(?V1i)(?>straße)"]
"""Where one character is the same as two in another case, nothing is known of how it begins."""


@pytest.mark.parametrize(
    "pattern",
    [
        r"\b\w+\b", r"(.)-\1", r"(?i)(é|ж|Ω)\1", r"(?>[à-ï]|€)x", r"\bé\b", r"(?i)(?>Ä)", r"(?a)\b\w+\b|é",
        r"(\w)(?!\1)\w",
        r"(?i:(.))\1", r"(?>\p{Greek}|\p{Sc}|[\u2028a])", r"(?m)a$\n^é", r"(?:€|a){e<=1}",
        r"(?m)(?>.)$", r"(?s)(?>.)", r"(?>[^\W\d_])", r"\bü(?<=[ü])", r"[\p{InGreek}&&[^\p{Lu}]]", *FOLDING,
    ],
)  # fmt: skip
@pytest.mark.parametrize("text", ["", "a", "é", "é-", "Ω", "ж"])
def test_one_character_stands_for_all_that_are_alike(pattern: str, text: str) -> None:
    asked = checker(pattern)
    for begun in (b"\xc3", b"\xce", b"\xcf", b"\xd0", b"\xd1", b"\xe2\x80", b"\xe2\x82", b"\xe2\x84", b"\xc5"):
        every = any(asked.is_prefix(text + chr(code)) for code in completions(begun))
        said = asked.is_prefix(text, begun)
        assert said == every or (said and pattern in FOLDING), begun


def test_bytes_within_characters_in_a_walk() -> None:
    judge = regex.compile(r"(é|😀|a\b)(?:-\1)*")
    members = [text for text in texts_over("é😀a-", 5) if judge.fullmatch(text)]
    begun = {prefix for member in members for prefix in prefixes(member)}
    for seed in range(6):
        session = Regex(judge.pattern).start(SMALL)
        # Members may be longer than those that were listed, and `a` may not go on.
        for _ in range(4):
            for token, added in enumerate(SMALL.tokens):
                if added and session.text + added in begun:
                    assert session.is_prefix(session.text + added), (session.text, added, token)
            assert session.is_complete(session.text) == (session.text.decode("utf-8", "replace") in members)
            going = [t for t, added in enumerate(SMALL.tokens) if added and session.is_prefix(session.text + added)]
            if not going:
                break
            session.advance(random.Random(seed).choice(going))
    session = Regex(r"(é|😀|a\b)(?:-\1)*").start(SMALL)
    assert session.is_prefix(b"\xf0\x9f")
    assert not session.is_prefix(b"\xf0\x9e")
    assert session.is_prefix("é-".encode() + b"\xc3")
    assert not session.is_prefix(b"a-" + b"\xc3")
    assert not session.is_complete(b"\xf0\x9f")


# -- as a constraint -----------------------------------------------------------------------------------------------


def test_a_walk_under_a_pattern_without_dead_ends() -> None:
    """The whole comparison that masks get, where partial matching is exact: every question at every step."""
    members = {b"a-a", b"ab-ab", b"b-b"}
    begun = {member[:length] for member in members for length in range(len(member) + 1)}
    for seed in range(8):
        session = Regex(r"(a|ab|b)-\1").start(SMALL)
        compare(session, SMALL, lambda text: text in begun, lambda text: text in members, seed=seed)


def test_the_engine_is_named() -> None:
    assert Regex("[ab]+").engine == "llguidance"
    assert Regex(r"\bword\b").engine == "regex"
    assert Regex("a", engine="regex").engine == "regex"
    assert Regex("a", engine="auto") == Regex("a") == Regex("a", engine="llguidance")
    constraint = Regex(r"(a)\1")
    assert constraint.to_dict() == {"kind": "regex", "pattern": r"(a)\1", "engine": "regex"}
    assert from_dict(constraint.to_dict()) == constraint == resolve(r"regex:(a)\1")
    assert Regex("[ab]", engine="regex").start(SMALL).mask() is None


@pytest.mark.parametrize(
    ("pattern", "engine", "message"),
    [
        ("(", "auto", "missing )"),
        ("(", "regex", "missing )"),
        (r"(?P<x>a)(?P=y)", "auto", "unknown group"),
        (r"\p{Nonsense}", "auto", "unknown property"),
        (r"(a)\1", "llguidance", "a backreference at 3 is not regular; engine='regex' takes it"),
        (r"(a)\1", "xgrammar", "a backreference at 3 is not regular; engine='regex' takes it"),
        (r"(a)\1{e<=1}", "auto", r"{e<=1} is text for Python's re and fuzzy matching for regex; write \{e<=1}"),
        ("a", "automaton", "engine='automaton' must be one of auto, llguidance, xgrammar, regex"),
    ],
)
def test_refusals(pattern: str, engine: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Regex(pattern, engine=engine)


def test_what_two_engines_read_differently() -> None:
    """Fuzzy matching has to be asked for; verbose patterns and Unicode's classes are read as Python reads them."""
    assert Regex("(?:ab){e<=1}").start(BYTES).is_complete(b"ab{e<=1}")
    assert Regex("(?:ab){e<=1}", engine="regex").start(BYTES).is_complete(b"b")
    for pattern, text in [
        (r"(?x)[a b]", " "),
        ("(?x)a #c\nb", "ab"),
        ("a{,}", "aaa"),
        ("[--a]", "B"),
        (r"\h", "\u2003"),
        (r"\pz", "pz"),
        ("[[:alpha:]]", "é"),
        ("[[:^alpha:]]", "1"),
        ("a(?i)b", "aB"),
    ]:
        assert regex.fullmatch(pattern, text)
        assert Regex(pattern).start(BYTES).is_complete(text.encode()), pattern


def test_combinations() -> None:
    twice = Regex(r"(a|b)\1")
    either = AnyOf(twice, Regex("ab")).start(SMALL)
    assert [either.is_complete(text) for text in (b"aa", b"bb", b"ab", b"ba")] == [True, True, True, False]
    both = AllOf(Regex("a."), twice).start(SMALL)
    assert [both.is_complete(text) for text in (b"aa", b"bb", b"ab")] == [True, False, False]
    assert not both.is_prefix(b"b")
    with pytest.raises(ValueError, match=re.escape(r"Regex(r'(?s)(?!(?:…)\Z).*')")):
        Not(twice)
    session = Regex(rf"(?s)(?!(?:{twice.pattern})\Z).*").start(SMALL)
    assert [session.is_complete(text) for text in (b"aa", b"ab", b"aab")] == [False, True, True]
    assert session.is_prefix(b"aa")


def test_a_text_is_asked_once_and_forks_share_the_answers() -> None:
    session = Regex(r"(a|b)+\b").start(SMALL)
    twin = session.fork()
    before = session.calls
    assert session.is_prefix(b"ab")
    assert twin.is_prefix(b"ab")
    assert session.calls == twin.calls == before + 1
    session.advance(SMALL.tokens.index(b"a"))
    assert (session.text, twin.text) == (b"a", b"")
    with pytest.raises(ValueError, match="is not allowed after b'a'"):
        session.advance(SMALL.tokens.index(b"c"))
    dropped = Vocabulary((b"", b" a", b"a"), frozenset([0]), drops_leading_space=True)
    assert Regex(r"\ba\b").start(dropped).is_complete(b" a")


def test_a_pattern_that_goes_through_too_many_ways_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from textguide.constraints.patterns import backtracking

    monkeypatch.setattr(backtracking, "SECONDS", 0.05)
    session = Regex(r"(?:(a+)(?:\1)*)+c\b").start(SMALL)
    with pytest.raises(ValueError, match=r"pattern='.*' took more than 0.05 s for a text of 61 characters"):
        session.is_complete(b"a" * 60 + b"-")
    with pytest.raises(ValueError, match=r"took more than .* put a character before a recursion"):
        Regex("((?R)?)").start(SMALL)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "regex", None)
    with pytest.raises(MissingExtraError, match=r"textguide\[constraints\]"):
        Regex(r"\bmissing\b")
