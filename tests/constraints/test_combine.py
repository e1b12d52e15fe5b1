"""Unions, intersections, complements: exact where they say so, and honest where they do not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textguide.constraints import (
    AllOf,
    AnyOf,
    Call,
    Constraint,
    Grammar,
    JSONSchema,
    Not,
    Predicate,
    Regex,
    UnsatisfiableError,
    from_dict,
)

from . import derivatives as d
from .test_regex import Pair, pairs
from .walks import BYTES, SMALL, compare

pytest.importorskip("llguidance")

Case = tuple[Constraint, d.Re]


def cases() -> st.SearchStrategy[Case]:
    def make(pair: Pair) -> Case:
        return Regex(pair[0]), pair[1]

    def grow(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
        two = st.tuples(inner, inner)
        return st.one_of(
            two.map(lambda p: (AnyOf(p[0][0], p[1][0]), d.either(p[0][1], p[1][1]))),
            two.map(lambda p: (AllOf(p[0][0], p[1][0]), d.both(p[0][1], p[1][1]))),
            inner.map(lambda p: (Not(p[0]), d.both(d.star(d.any_character()), d.other(p[1])))),
        )

    return st.recursive(pairs().map(make), grow, max_leaves=3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=cases(), seed=st.integers(0, 1000))
def test_regular_constraints_combine_exactly(case: Case, seed: int) -> None:
    constraint, oracle = case
    possible = d.is_complete(oracle, b"") or any(text and d.is_prefix(oracle, text) for text in SMALL.tokens)
    if not possible:
        with pytest.raises(UnsatisfiableError):
            constraint.start(SMALL)
        return
    session = constraint.start(SMALL)
    assert session.mask() is not None
    compare(session, SMALL, lambda t: d.is_prefix(oracle, t), lambda t: d.is_complete(oracle, t), steps=4, seed=seed)


FINITE = Grammar('start: "ab" | "a0" | "ba"')
OTHERS: list[tuple[Constraint, set[bytes]]] = [
    (Regex("ab?|b{2}"), {b"a", b"ab", b"bb"}),
    (FINITE, {b"ab", b"a0", b"ba"}),
    (JSONSchema({"enum": [1, 10, "a"]}), {b"1", b"10", b'"a"'}),
    (Predicate(b"aab".startswith, b"aab".__eq__, on="bytes"), {b"aab"}),
    (Predicate("aé".encode().startswith, "aé".encode().__eq__, on="bytes"), {"aé".encode()}),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("first", range(len(OTHERS)))
@pytest.mark.parametrize("second", range(len(OTHERS)))
def test_any_of_is_exact_for_all_kinds(first: int, second: int, seed: int) -> None:
    (one, ones), (two, twos) = OTHERS[first], OTHERS[second]
    union = ones | twos

    def is_prefix(text: bytes) -> bool:
        return any(member.startswith(text) for member in union)

    session = AnyOf(one, two).start(SMALL)
    compare(session, SMALL, is_prefix, union.__contains__, steps=4, seed=seed)


def test_all_of_others_holds_for_complete_texts() -> None:
    """What is complete is complete under both; a prefix is one under both."""
    texts = {b"", b"a", b"ab", b"a0", b"ba", b"b", b"bb", b"aab", b"1"}
    for one, ones in OTHERS:
        for two, twos in OTHERS:
            if one.regular() and two.regular():
                continue
            try:
                session = AllOf(one, two).start(SMALL)
            except UnsatisfiableError:
                assert not ones & twos
                continue
            for text in texts | ones | twos:
                assert session.is_complete(text) == (text in ones & twos)
                if any(member.startswith(text) for member in ones & twos):
                    assert session.is_prefix(text)


def test_all_of_may_come_to_a_dead_end_and_shows_it() -> None:
    session = AllOf(Regex("ab|c"), Grammar('start: "a0" | "c"')).start(SMALL)
    mask = session.mask()
    assert mask is not None
    assert mask[SMALL.tokens.index(b"a")]  # a prefix under both, and of no common text
    session.advance(SMALL.tokens.index(b"a"))
    after = session.mask()
    assert after is not None
    assert not after.any()


def test_regular_parts_of_all_of_are_taken_together() -> None:
    with pytest.raises(UnsatisfiableError):
        AllOf(Regex("ab"), Predicate(lambda text: True), Regex("ac")).start(SMALL)
    session = AllOf(Regex("ab|c"), Predicate(lambda text: True), Regex("a0|c")).start(SMALL)
    assert not session.is_prefix(b"a")
    assert session.is_prefix(b"c")


@pytest.mark.parametrize(
    "constraint",
    [AllOf(Regex("a"), Regex("b")), AllOf(Regex("a"), FINITE, Grammar('start: "1"')), Not(Regex("(?s:.*)")),
     AnyOf(JSONSchema(False), Grammar('start: /[^\\s\\S]/'))],
)  # fmt: skip
def test_what_nothing_satisfies_ends_at_once(constraint: Constraint) -> None:
    with pytest.raises(UnsatisfiableError, match="nothing satisfies"):
        constraint.start(SMALL)


def test_any_of_passes_over_branches_that_nothing_satisfies() -> None:
    assert AnyOf(JSONSchema(False), FINITE).start(SMALL).is_complete(b"ab")
    with pytest.raises(ValueError, match="cannot be read"):  # and not over those that cannot be used
        AnyOf(JSONSchema({"type": "string", "pattern": "(a"}), FINITE).start(SMALL)


def test_forks_of_any_of_are_independent_and_share_the_count() -> None:
    session = AnyOf(FINITE, Predicate(lambda t: "aab".startswith(t))).start(SMALL)
    twin = session.fork()
    session.advance(SMALL.tokens.index(b"ba"))
    twin.advance(SMALL.tokens.index(b"aab"))
    assert (session.text, twin.text) == (b"ba", b"aab")
    assert session.mask() is not None  # the function is out of it
    assert twin.mask() is None
    assert session.is_prefix(b"aab")  # a text elsewhere: all branches are asked
    before = session.calls
    twin.is_prefix(b"aab0")
    assert session.calls > before
    with pytest.raises(ValueError, match="is not allowed after b'ba'"):
        session.advance(SMALL.tokens.index(b"a"))
    assert session.text == b"ba"


@pytest.mark.parametrize(
    "constraint", [JSONSchema(True), FINITE, Predicate(str.isascii), AnyOf(FINITE, Regex("a")), AllOf(FINITE)]
)
def test_not_of_what_is_not_regular_is_refused(constraint: Constraint) -> None:
    with pytest.raises(ValueError, match=rf"constraint={type(constraint).__name__} cannot be negated: .*Predicate"):
        Not(constraint)


@pytest.mark.parametrize("make", [lambda: AnyOf(), lambda: AllOf(Regex("a"), "b"), lambda: Not("a"), lambda: AnyOf([])])
def test_wrong_fields(make: Any) -> None:
    with pytest.raises(ValueError, match="constraint"):
        make()


def test_tools_are_a_union() -> None:
    pytest.importorskip("pydantic")

    def weather(city: str, days: int = 3) -> None: ...

    def stop() -> None: ...

    tools = AnyOf(Call(weather, whitespace="none"), Call(stop), Regex("no tool"), Grammar('start: "(" /[0-9]+/ ")"'))
    session = tools.start(BYTES)
    called = '{"name":"weather","arguments":{"city":"Graz"}}'
    for text in (called, '{"name": "stop", "arguments": {}}', "no tool", "(12)"):
        assert session.is_complete(text.encode()), text
        assert all(session.is_prefix(text.encode()[:end]) for end in range(len(text))), text
    for text in (called.replace(":", ": "), '{"name":"weather","arguments":{"days":3}}', "no tools", "(12"):
        assert not session.is_complete(text.encode()), text
    for byte in called.encode()[:-1]:
        mask = session.mask()
        assert mask is not None
        assert mask[byte + 1]
        assert not mask[0]
        session.advance(byte + 1)
    assert from_dict(tools.to_dict()) == tools
