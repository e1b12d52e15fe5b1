"""Regular expressions: masks against derivatives, refusals by name, patterns that blow up elsewhere."""

from __future__ import annotations

import random
import re
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textguide.constraints import Regex, UnsatisfiableError, Vocabulary

from . import derivatives as d
from .walks import BYTES, SMALL, compare
from .walks import BYTES as EVERY_BYTE

pytest.importorskip("llguidance")

Pair = tuple[str, d.Re]
LETTERS = "abc01é😀"


def pairs() -> st.SearchStrategy[Pair]:
    """A pattern and the same set for the oracle."""
    letter = st.sampled_from(LETTERS).map(lambda c: (c, d.text(c)))
    a_set = st.sets(st.sampled_from(LETTERS), min_size=1, max_size=3).map(
        lambda s: (f"[{''.join(sorted(s))}]", d.one_of("".join(s)))
    )
    dot = st.just(("(?s:.)", d.any_character()))

    def grow(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
        counts = st.tuples(st.integers(0, 2), st.integers(0, 2))
        return st.one_of(
            st.tuples(inner, inner).map(lambda p: (p[0][0] + p[1][0], d.then(p[0][1], p[1][1]))),
            st.tuples(inner, inner).map(lambda p: (f"(?:{p[0][0]}|{p[1][0]})", d.either(p[0][1], p[1][1]))),
            inner.map(lambda p: (f"(?:{p[0]})*", d.star(p[1]))),
            inner.map(lambda p: (f"({p[0]})+?", d.repeat(p[1], 1, None))),
            inner.map(lambda p: (f"(?P<x>{p[0]})?", d.repeat(p[1], 0, 1))),
            st.tuples(inner, counts).map(
                lambda p: (f"(?:{p[0][0]}){{{p[1][0]},{sum(p[1])}}}", d.repeat(p[0][1], p[1][0], sum(p[1])))
            ),
        )

    return st.recursive(st.one_of(letter, a_set, dot), grow, max_leaves=6)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(pair=pairs(), seed=st.integers(0, 1000))
def test_masks_are_those_of_the_derivatives(pair: Pair, seed: int) -> None:
    pattern, oracle = pair
    if not d.is_complete(oracle, b"") and not any(added and d.is_prefix(oracle, added) for added in SMALL.tokens):
        with pytest.raises(ValueError, match="no token of the vocabulary"):
            Regex(pattern).start(SMALL)
        return
    session = Regex(pattern).start(SMALL)
    compare(session, SMALL, lambda t: d.is_prefix(oracle, t), lambda t: d.is_complete(oracle, t), seed=seed)


def test_the_oracle_is_right_about_finite_sets() -> None:
    """The derivatives themselves, against every text up to a length and Python's own engine."""
    for pattern, oracle in [
        ("a(b|é)?", d.then(d.text("a"), d.repeat(d.one_of("bé"), 0, 1))),
        ("(ab|a)*c", d.then(d.star(d.either(d.text("ab"), d.text("a"))), d.text("c"))),
        ("[ab]{1,2}", d.repeat(d.one_of("ab"), 1, 2)),
    ]:
        members = {"".join(t).encode() for n in range(6) for t in product("abcé", repeat=n)}
        for text in members:
            matches = re.fullmatch(pattern, text.decode()) is not None
            assert d.is_complete(oracle, text) == matches
    assert d.satisfiable(d.both(d.text("a"), d.text("b"))) is False
    assert d.satisfiable(d.other(d.star(d.any_character())))  # bytes that are no UTF-8


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        (r"\d{4}-\d{2}", ["2024-05", "１２３４-05"], ["2024-5", "2024-055", ""]),
        (r"^ab$", ["ab"], ["ab\n", "a"]),
        (r"\Aab\Z", ["ab"], ["b"]),
        (r"[^[\]]+", ["ab", "é"], ["[", "]"]),
        (r"[]a]+", ["]a"], ["b"]),
        (r"[\w.-]+@[a-z]+", ["a.b-c@d"], ["a b@c"]),
        (r"a{,2}", ["", "a", "aa"], ["aaa"]),
        (r"a{x}|\{|}", ["a{x}", "{", "}"], ["a"]),
        (r"(?#note)a(?i:b)", ["aB", "ab"], ["AB"]),
        (r"(?P<x>a)(?<x>b)", ["ab"], ["a"]),
        (r"[\b]\0\07\x41\u0042\N{BULLET}", ["\x08\0\x07AB•"], ["b"]),
        (r"\p{Lu}[[:digit:]]\/\<\ ", ["É1/< "], ["é1/< "]),
        (r"[a-z&&[^aeiou]]+", ["xyz"], ["a", "&"]),
        (r"[\w--\d]+", ["a_é"], ["1", "-"]),
        (r"[a&b]+", ["a&b"], ["c"]),
        (r".*", ["", "a é"], ["a\nb"]),
        (r"(?x) a b # c", ["ab"], ["a b"]),
        (
            "(?xi) [a b] \\ # c [\n {2} (?# x) | (?=a) a \\# | \\0 1",
            ["B  ", "A#", "\0" + "1"],
            ["b ", "\1", "a "],
        ),
        ("a/b\n'\"", ["a/b\n'\""], ["ab"]),
        ("", [""], ["a"]),
        ("😀|e\u0301", ["😀", "e\u0301"], ["é"]),
    ],
)
def test_the_syntax_is_pythons(pattern: str, inside: list[str], outside: list[str]) -> None:
    session = Regex(pattern).start(EVERY_BYTE)
    for text in inside:
        assert session.is_complete(text.encode()), text
        assert session.is_prefix(text.encode())
    for text in outside:
        assert not session.is_complete(text.encode()), text


@pytest.mark.parametrize(
    ("pattern", "construct"),
    [
        (r"(a(?=b))*b", "a lookahead at 2 is not supported inside a group"),
        (r"(?i)x(?:(?!a)b)+", "a negative lookahead at 8 is not supported inside a group"),
        (r"a(?=b)b(?<=b)c", "a lookahead at 1 before a lookbehind"),
        (r"a(?=b)*", "a repeated look-around at 6"),
        (r"(?=a(?!b))a", "a negative lookahead at 4 is not supported inside a group"),
        (r"(?=^a)a", "an anchor inside a lookahead"),
        (r"a(?=b)^b", "an anchor next to a lookahead at 1"),
        (r"(?x)a(?-x: )", "the flag x at 0"),
        (r"(?i-x:a)|(?x-i: a)", "the flag x at 0"),
        (r"[--a]", "two hyphens in the set at 0"),
        (r"[a-z--[b]&&c]", "several operators in the set at 0"),
        (r"[[:punct:]]", "the class [:punct:] in the set at 0"),
        (r"a\pz", r"a letter \p at 1 is not a property"),
        (r"\bword\b", "a word boundary"),
        (r"(a)\1", "a backreference at 3"),
        (r"(?P<x>a)(?P=x)", "a backreference"),
        (r"\k<x>", "a backreference"),
        (r"(?>a|ab)c", "an atomic group"),
        (r"a*+", "a possessive quantifier at 2"),
        (r"a{2}+", "a possessive quantifier"),
        (r"\((?R)?\)", "a recursion"),
        (r"(a|b(?1))", "a recursion"),
        (r"(?&x)", "a recursion"),
        (r"(a)?(?(1)b|c)", "a conditional"),
        (r"(?|(a)|(b))", "a branch reset"),
        (r"(*FAIL)", "a verb"),
        (r"a^b", "an anchor inside"),
        (r"(?m)^a$", "anchors of lines"),
        (r"\p{InGreek}", r"\p{InGreek}"),
        (r"[a", "the set at 0 is not closed"),
        (r"(a", "unclosed group"),
        ("a\\", "a backslash at 1"),
        (r"\Ga", "an anchor at the last match"),
        (r"[\1]", "an octal escape"),
        (r"*a", "repetition operator missing expression"),
        (r"\N{NO SUCH NAME}", "the character name"),
    ],
)
def test_refusals_name_the_construct(pattern: str, construct: str) -> None:
    with pytest.raises(ValueError, match=re.escape(construct)) as caught:
        Regex(pattern, engine="llguidance")
    assert f"pattern={pattern!r}" in str(caught.value)


def test_look_around_is_pythons() -> None:
    """Random patterns of pieces and look-around, against Python's engine on every text up to a length."""
    texts = ["".join(letters) for length in range(5) for letters in product("ab1", repeat=length)]
    pieces = ["a", "b", "[ab]*", "(?:ab|a)?", "1?", r"\w", "[ab1]+", ".*"]
    bodies = ["a", "b$", "ab", "[ab]+1", "1|b", "", "$", "a*", "^a", "^", "^ab", r"\d"]
    rng, taken = random.Random(0), 0
    for _ in range(600):
        looks = [
            rng.choice(["(?=", "(?!", "(?<=", "(?<!"]) + rng.choice(bodies) + ")" for _ in range(rng.randint(1, 3))
        ]
        parts = [*looks, *rng.choices(pieces, k=rng.randint(0, 3))]
        rng.shuffle(parts)
        pattern = "".join(["^"[: rng.randint(0, 1)], *parts, "$"[: rng.randint(0, 1)], *["|a"][: rng.randint(0, 1)]])
        try:
            expected = {text for text in texts if re.fullmatch(pattern, text)}
            constraint = Regex(pattern)
        except (re.error, ValueError):  # Python looks back over texts of one length alone
            continue
        taken += 1
        try:
            session = constraint.start(BYTES)
        except UnsatisfiableError:
            found = set()
        else:
            found = {text for text in texts if session.is_complete(text.encode())}
            assert all(session.is_prefix(text[:n].encode()) for text in expected for n in range(len(text) + 1))
        assert found == expected, pattern
    assert taken > 300


def test_a_password() -> None:
    session = Regex(r"^(?=.*\d)(?=.*[a-z])(?!.*\s)\S{4,6}$").start(BYTES)
    assert session.is_complete(b"ab1x")
    assert not session.is_complete(b"abxy")
    assert session.is_prefix(b"abcde")
    assert not session.is_prefix(b"abcdef")  # no room for a digit is left


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+b", "(a*)*(a*)*c", "((a?){30}a{30})+", "(.*a){20}", "(x+x+)+y"])
def test_patterns_that_backtrack_for_ever_elsewhere(pattern: str) -> None:
    session = Regex(pattern).start(EVERY_BYTE)
    text = b"a" * 5000
    assert session.is_prefix(text) == (pattern != "(x+x+)+y")
    assert not session.is_complete(text + b"!")


@pytest.mark.parametrize("pattern", [r"[^\s\S]", r"a[^\s\S]b", "a(?=b)c", "(?<=a)a"])
def test_what_nothing_satisfies_ends_at_once(pattern: str) -> None:
    with pytest.raises(ValueError, match="nothing satisfies it") as caught:
        Regex(pattern).start(SMALL)
    assert repr(pattern) in str(caught.value)


def test_a_vocabulary_that_cannot_begin_it() -> None:
    with pytest.raises(ValueError, match="no token of the vocabulary"):
        Regex("zebra").start(SMALL)


def test_ends_come_exactly_where_the_text_is_complete() -> None:
    session = Regex("ab?").start(SMALL)
    assert not session.mask()[1]  # type: ignore[index]
    session.advance(SMALL.tokens.index(b"a"))
    assert session.mask()[1]  # type: ignore[index]
    session.advance(SMALL.tokens.index(b"b"))
    assert session.mask().nonzero().tolist() == [[1]]  # type: ignore[union-attr]


def test_without_an_end_token_nothing_ends() -> None:
    vocabulary = Vocabulary((b"a", b"b"), frozenset())
    session = Regex("ab").start(vocabulary)
    session.advance(0)
    session.advance(1)
    assert session.is_complete(session.text)
    assert session.mask().tolist() == [False, False]  # type: ignore[union-attr]


def test_the_leading_space_that_decode_leaves_out() -> None:
    tokens = (b"", b" a", b"a", b" ", b"b", b"  a")
    kept, dropped = (Vocabulary(tokens, frozenset([0]), drops) for drops in (False, True))

    def oracle(text: bytes) -> bytes:
        return text[1:] if text[:1] == b" " else text

    assert Regex("ab").start(kept).mask().tolist() == [False, False, True, False, False, False]  # type: ignore[union-attr]
    session = Regex("ab").start(dropped)
    assert session.mask().tolist() == [False, True, True, True, False, False]  # type: ignore[union-attr]
    compare(session, dropped, lambda t: b"ab".startswith(oracle(t)), lambda t: oracle(t) == b"ab", seed=1)
    for first in (1, 3):
        session = Regex("ab").start(dropped)
        session.advance(first)
        assert session.text == tokens[first]
        session.advance(4) if first == 1 else session.advance(2)


def test_forks_are_independent_and_share_the_count() -> None:
    session = Regex("(a|b)*").start(SMALL)
    twin = session.fork()
    session.advance(2)
    twin.advance(3)
    assert (session.text, twin.text) == (b"a", b"b")
    before = session.calls
    twin.mask()
    twin.is_prefix(b"ba")
    assert session.calls == twin.calls == before + 2
    mask = session.mask()
    assert mask is not None
    mask.zero_()  # the caller's own
    assert session.mask().any()  # type: ignore[union-attr]


def test_a_session_can_be_asked_about_any_text() -> None:
    session = Regex("ab*c").start(SMALL)
    session.advance(5)
    assert session.is_prefix(b"")
    assert session.is_prefix(b"a")
    assert session.is_prefix(b"abbbb")
    assert session.is_complete(b"ac")
    assert not session.is_prefix(b"b")
    assert not session.is_complete(b"ab")


@pytest.mark.parametrize(
    ("token", "message"),
    [(3, "is not allowed after"), (1, "ends a text"), (0, "has no bytes"), (999, "is not an id"), (-1, "is not an id")],
)
def test_tokens_that_cannot_be_written(token: int, message: str) -> None:
    session = Regex("a").start(SMALL)
    with pytest.raises(ValueError, match=message):
        session.advance(token)
    session.advance(2)  # the session is as it was


@pytest.mark.parametrize("values", [{"pattern": 3}, {"pattern": "a", "engine": "nfa"}])
def test_wrong_fields(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"pattern=3|engine='nfa'"):
        Regex(**values)


@pytest.mark.parametrize(("pattern", "count"), [("((a{1,30}){1,30}){1,30}", 200), ("([ab]{1,60}){1,60}", 400)])
def test_limits_of_the_engine_are_errors_and_no_verdicts(pattern: str, count: int) -> None:
    session = Regex(pattern).start(EVERY_BYTE)
    assert session.is_complete(b"a" * 20)
    for question in (session.is_prefix, session.is_complete):
        with pytest.raises(ValueError, match="too large for the engine"):
            question(b"a" * count)
