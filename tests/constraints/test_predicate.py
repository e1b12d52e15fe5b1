"""Python functions as constraints."""

from __future__ import annotations

import re
import traceback
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textguide.constraints import Predicate, Vocabulary

from .walks import SMALL, compare

MEMBERS = ["a", "ab", "a😀b", "é", "abab"]


def prefix(text: str) -> bool:
    return any(member.startswith(text) for member in MEMBERS)


def utf8_prefix(text: bytes) -> bool:
    return any(member.encode().startswith(text) for member in MEMBERS)


def begins_utf8(text: bytes) -> bool:
    """Whether some bytes behind ``text`` make it UTF-8, tried out."""
    for missing in range(4):
        tails = [b""] if not missing else [bytes([low]) + b"\x80" * (missing - 1) for low in range(0x80, 0xC0)]
        for tail in tails:
            try:
                (text + tail).decode()
                return True
            except UnicodeDecodeError:
                continue
    return False


@pytest.mark.parametrize("seed", range(12))
def test_texts_are_shown_by_whole_characters(seed: int) -> None:
    def oracle(text: bytes) -> bool:
        # The characters before the last, and bytes that begin one: é may come even where only ü could follow.
        whole = next(text[:n] for n in range(len(text), -1, -1) if _decodes(text[:n]))
        return begins_utf8(text) and prefix(whole.decode())

    predicate = Predicate(prefix, lambda text: text in MEMBERS)
    compare(predicate.start(SMALL), SMALL, oracle, lambda t: t.decode("utf-8", "replace") in MEMBERS, seed=seed)


def _decodes(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("seed", range(6))
def test_functions_of_bytes(seed: int) -> None:
    # complete_fn is asked for prefixes alone, some of which are no UTF-8: it must not be asked for what is refused.
    predicate = Predicate(utf8_prefix, lambda text: text in [m.encode() for m in MEMBERS], on="bytes")
    compare(predicate.start(SMALL), SMALL, utf8_prefix, lambda t: t in [m.encode() for m in MEMBERS], seed=seed)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=5))
def test_bytes_that_begin_no_character_are_refused_unasked(text: bytes) -> None:
    session = Predicate(lambda shown: True).start(SMALL)
    assert session.is_prefix(text) == begins_utf8(text)
    assert session.is_complete(text) == _decodes(text)


def test_without_complete_fn_every_prefix_is_complete() -> None:
    session = Predicate(prefix).start(SMALL)
    assert session.is_complete(b"aba")
    assert not session.is_complete(b"b")
    assert not session.is_complete(b"a\xf0\x9f")
    assert session.mask() is None


def test_a_text_is_asked_once() -> None:
    asked: list[str] = []

    def recorded(text: str) -> bool:
        asked.append(text)
        return True

    session = Predicate(recorded).start(SMALL)
    twin = session.fork()
    for one in (session, twin):
        one.is_prefix(b"ab")
        one.advance(SMALL.tokens.index(b"ab"))
        one.is_prefix(b"ab\xf0\x9f")  # the same characters
    assert asked == ["", "ab"]
    assert session.calls == twin.calls == 2
    assert Predicate(recorded).start(SMALL).calls == 1  # a session of its own asks anew


def test_ascii_refuses_the_rest_unasked() -> None:
    for on in ("text", "bytes"):
        session = Predicate(lambda text: True, on=on, ascii=True).start(SMALL)
        for text in ("é".encode(), b"a\xc3", b"\xff", "a😀b".encode()):
            assert not session.is_prefix(text)
            assert not session.is_complete(text)
        assert session.calls == 1
        assert session.is_prefix(b"a\x7f")


def test_answers_are_forgotten_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from textguide.constraints import memoized_session

    monkeypatch.setattr(memoized_session, "MAX_VERDICTS", 10)
    session = Predicate(lambda text: len(text) % 2 == 0).start(SMALL)
    for length in [*range(40), *range(40)]:
        assert session.is_prefix(b"a" * length) == (length % 2 == 0)
    assert len(session._verdicts._answers) <= 10


def broken(text: str) -> bool:
    return len(text) < 2 or {}["missing"]


def test_exceptions_surface_with_their_traceback_and_the_text() -> None:
    session = Predicate(broken).start(SMALL)
    with pytest.raises(KeyError) as caught:
        session.is_prefix("aé".encode())
    shown = "".join(traceback.format_exception(caught.value))
    assert "in broken" in shown
    assert "return len(text) < 2 or" in shown
    assert re.search(r"prefix_fn=\S*broken of a Predicate for 'aé'", shown)


@pytest.mark.parametrize("answer", [None, 1, "yes", [], np.array([True, True])])
def test_answers_that_are_no_verdict(answer: Any) -> None:
    session = Predicate(lambda text: answer if text else True).start(SMALL)
    with pytest.raises(ValueError, match=r"for 'a'; it must return True or False"):
        session.is_prefix(b"a")


def test_numpys_booleans_are_verdicts() -> None:
    assert Predicate(lambda text: np.bool_(True)).start(SMALL).is_prefix(b"a")


def test_what_refuses_the_empty_text_ends_at_once() -> None:
    with pytest.raises(ValueError, match="is False for the empty text"):
        Predicate(lambda text: False).start(SMALL)


@pytest.mark.parametrize(
    ("values", "name"),
    [({"prefix_fn": 3}, "prefix_fn=3"), ({"prefix_fn": prefix, "complete_fn": "x"}, "complete_fn='x'"),
     ({"prefix_fn": prefix, "on": "chars"}, "on='chars'"), ({"prefix_fn": prefix, "ascii": 1}, "ascii=1")],
)  # fmt: skip
def test_wrong_fields(values: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Predicate(**values)


def test_tokens_that_cannot_be_written() -> None:
    session = Predicate(prefix).start(SMALL)
    with pytest.raises(ValueError, match="is not allowed after b''"):
        session.advance(SMALL.tokens.index(b"c"))
    assert session.text == b""


def test_the_leading_space_that_decode_leaves_out() -> None:
    vocabulary = Vocabulary((b"", b" a", b"b"), frozenset([0]), drops_leading_space=True)
    session = Predicate(prefix).start(vocabulary)
    session.advance(1)
    session.advance(2)
    assert session.text == b" ab"
    assert session.is_complete(b" ab")
    assert not session.is_prefix(b"  ab")


def test_values() -> None:
    assert Predicate(prefix) == Predicate(prefix)
    assert hash(Predicate(prefix)) == hash(Predicate(prefix))
    described = Predicate(prefix, on="bytes").to_dict()
    assert described["prefix_fn"].endswith("test_predicate.prefix")
    assert described["on"] == "bytes"
