"""Automata read the language of the engine that masks: the same tokens may follow everywhere."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch

from textguide.constraints import AllOf, AnyOf, Grammar, Not, Predicate, Regex, Vocabulary
from textguide.constraints.automata import automaton_of, token_automaton
from textguide.constraints.automata.expressions import Expressions, TooLargeError
from textguide.support import array_cache

LETTERS = [bytes([byte]) for byte in range(256)]
PIECES = ["ab", "ba", "aa", "10", "-0", "19", " a", "é", "é€", "日本", "😀", "\n\n", "x/", "AB", ".5", '"', '",']
VOCABULARY = Vocabulary(
    (b"", *LETTERS, *(piece.encode() for piece in PIECES), b"ab", "日".encode()[:2]), frozenset({0})
)

EXACT = [
    r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    r"[ab]*abb",
    r"(a|ab)(c|bcd)?x*",
    r".{2,4}",
    r"(?s).a|[^a-z]{1,3}",
    r"[à-ü€😀]+|日本?",
    r"(a?){4}a{2}",
    r"^(?:ab|ba)$",
    r"^(?=.*1)(?!.*--)[01-]{3,6}$",
    r"a(?=b)[abc]+",
    r"x/[.\]\-\\]+\.?",
    r"\x41\x{1F600}|\t\n",
    r"|a+?",
]
WIDE = [r"\d{2}-\w+", r"(?i)ab[k-m]", r"[^\W\d]+\s?", r"[\w--[a-f]]{2}", r"\p{L}+1", r"^(?!.*\d)[ab1é]+$"]


def compare(constraint: object, exact: bool, seed: int = 0, walks: int = 12) -> None:
    rng = random.Random(seed)
    automaton = automaton_of(constraint, VOCABULARY)  # type: ignore[arg-type]
    assert automaton is not None
    ascii_only = [all(byte < 128 for byte in token) for token in VOCABULARY.tokens]
    for _ in range(walks):
        session = constraint.start(VOCABULARY)  # type: ignore[attr-defined]
        state = automaton.begin
        for _ in range(8):
            mask, allowed = session.mask(), automaton.allowed(state)
            assert not bool((mask & ~allowed).any()), session.text
            if exact:
                assert mask.equal(allowed), session.text
            elif all(byte < 128 for byte in session.text):
                differ = (mask != allowed).nonzero().flatten().tolist()
                assert not any(ascii_only[token] for token in differ), session.text
            choices = mask[1:].nonzero().flatten().add(1).tolist()
            if not choices:
                break
            token = rng.choice(choices)
            session.advance(token)
            state = automaton.step(state, token)


@pytest.mark.parametrize("pattern", EXACT)
def test_the_same_tokens_follow(pattern: str) -> None:
    assert Regex(pattern).engine == "llguidance"
    compare(Regex(pattern), True)


@pytest.mark.parametrize("pattern", WIDE)
def test_classes_of_unicode_make_a_superset(pattern: str) -> None:
    assert Regex(pattern).engine == "llguidance"
    compare(Regex(pattern), False)


def test_combinations() -> None:
    compare(AnyOf(Regex("ab*"), Regex("[0-9]{2}")), True)
    compare(AllOf(Regex("[ab]*"), Regex(".*bb.*")), True)
    compare(AllOf(Regex("[ab]{1,5}"), Not(Regex(".*aa.*"))), True)
    beside = AllOf(Regex("[ab]{2,3}"), Predicate(lambda text: "bb" not in text))
    automaton = automaton_of(beside, VOCABULARY)
    assert automaton is not None
    assert int(automaton.distances[automaton.begin]) == 1  # by the token "ab"


def test_what_is_not_regular_has_none() -> None:
    for constraint in (Regex(r"(a)\1"), Predicate(lambda text: True), Grammar('start: "a" start "b" | "c"\n')):
        assert automaton_of(constraint, VOCABULARY) is None
    assert automaton_of(Regex("(a|b)*a(a|b){14}"), VOCABULARY) is None  # which has 2^15 states


def test_a_leading_space_is_not_seen_in_front() -> None:
    tokens = (b"", b" ", b" a", b"a", b"b", b" b")
    vocabulary = Vocabulary(tokens, frozenset({0}), drops_leading_space=True)
    for pattern in ("ab", "a?( b)?", " ?a b"):
        automaton, session = automaton_of(Regex(pattern), vocabulary), Regex(pattern).start(vocabulary)
        assert automaton is not None
        assert session.mask().equal(automaton.allowed(automaton.begin))
        for token in session.mask()[1:].nonzero().flatten().add(1).tolist():
            here = session.fork()
            here.advance(token)
            assert here.mask().equal(automaton.allowed(automaton.step(automaton.begin, token)))


def test_distances_are_the_shortest_ways() -> None:
    automaton = automaton_of(Regex("(ab){1,3}c|a{5}"), VOCABULARY)
    assert automaton is not None

    def shortest(state: int) -> int:
        reached, steps = {state}, 0
        while not any(automaton.accepting[s] for s in reached):
            reached = {automaton.step(s, t) for s in reached for t in range(1, VOCABULARY.size)} - {automaton.dead}
            steps += 1
        return steps

    for state in range(automaton.size):
        if state != automaton.dead:
            assert automaton.distances[state] == shortest(state)


def test_random_expressions_are_what_re_says() -> None:
    """Without an engine: expressions made by hand against ``re``, with complement and intersection."""
    rng = random.Random(1)

    def made(expressions: Expressions, depth: int) -> tuple[int, str]:
        kind = rng.choice("abcjeero") if depth else rng.choice("abc")
        if kind in "abc":
            return expressions.branch([(ord(kind), ord(kind), 1)]), kind
        (one, first), (two, second) = made(expressions, depth - 1), made(expressions, depth - 1)
        if kind == "j":
            return expressions.join([one, two]), f"(?:{first})(?:{second})"
        if kind == "e":
            return expressions.either([one, two]), f"(?:{first}|{second})"
        if kind == "o":  # the first and not the second, as a whole
            node = expressions.both([one, expressions.outside(two)])
            return node, f"(?=(?:{first})\\Z)(?!(?:{second})\\Z)[abc]*"
        least = rng.randint(0, 2)
        most = rng.choice([None, least + rng.randint(0, 2)])
        count = f"{{{least},{'' if most is None else most}}}"
        return expressions.repeat(one, least, most), f"(?:{first}){count}"

    texts = ["".join(rng.choice("abc") for _ in range(rng.randint(0, 6))) for _ in range(60)]
    for _ in range(150):
        expressions = Expressions()
        node, pattern = made(expressions, 3)
        if "\\Z" in pattern[3:] and not pattern.startswith("(?="):
            continue  # re's \Z would mean the end of the whole
        if pattern.count("\\Z") > 2:
            continue
        automaton = expressions.automaton(node, 2000)
        for text in texts:
            accepted = bool(automaton.accepting[automaton.run(automaton.start, text.encode())])
            assert accepted == (re.fullmatch(pattern, text) is not None), (pattern, text)


def test_automata_that_were_kept_are_those_that_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGUIDE_CACHE", str(tmp_path))
    monkeypatch.setattr(array_cache, "MIN_SECONDS", 0.0)
    listing, lists = token_automaton.TokenAutomaton._list_moves, []
    monkeypatch.setattr(token_automaton.TokenAutomaton, "_list_moves", lambda self: lists.append(0) or listing(self))

    def made(pattern: str, vocabulary: Vocabulary = VOCABULARY) -> token_automaton.TokenAutomaton:
        token_automaton._build.cache_clear()
        automaton = automaton_of(Regex(pattern), vocabulary)
        assert automaton is not None
        return automaton

    first, again = made(EXACT[0]), made(EXACT[0])
    for name in ("offsets", "tokens", "targets"):
        one, other = getattr(first.moves, name), getattr(again.moves, name)
        assert one.dtype == other.dtype
        assert (one == other).all()
    assert (first.distances == again.distances).all()
    assert len(lists) == 1
    assert not torch.equal(made(EXACT[1]).allowed(0), first.allowed(0))
    fewer = Vocabulary(tuple(b"" if text == b"19" else text for text in VOCABULARY.tokens), VOCABULARY.ends)
    assert len(made(EXACT[0], fewer).moves.tokens) < len(first.moves.tokens)
    assert len(lists) == 3
    monkeypatch.setattr(token_automaton, "MOVES", 1)
    for _ in range(2):
        with pytest.raises(TooLargeError, match="more than 1 moves"):
            _ = made(EXACT[0]).moves
    assert len(lists) == 4
