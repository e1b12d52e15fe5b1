"""Vocabularies for tests, and walks that compare a session with an oracle at every step."""

from __future__ import annotations

import random
from collections.abc import Callable

from textguide.constraints import Session, Vocabulary

BYTES = Vocabulary((b"", *(bytes([byte]) for byte in range(256))), frozenset([0]))
"""The end, and every byte."""

SMALL = Vocabulary(
    (
        b"", b"", b"a", b"b", b"c", b"ab", b"ba", b"aab", b"bc", b"0", b"1", b"01", b"-", b" ", b" a", b"a b", b"\n",
        "é".encode(), b"\xc3", b"\xa9", b"\xa9a", b"a\xc3", b"ab", b"\xf0\x9f", b"\x98\x80", "😀".encode(), b"\xff",
        b'"', b"{", b"}", b"[", b"]", b":", b",", b'":', b'{"', b"true", b"null", b'"a"', b"",
    ),
    frozenset([1]),
)  # fmt: skip
"""Characters split over tokens, tokens with the same bytes, bytes that begin no character, ids without bytes."""


def compare(
    session: Session,
    vocabulary: Vocabulary,
    is_prefix: Callable[[bytes], bool],
    is_complete: Callable[[bytes], bool],
    steps: int = 6,
    seed: int = 0,
) -> bytes:
    """Walk along allowed tokens; at each step the mask, where there is one, and every token's bytes agree with the
    oracle. Returns what was written."""
    rng = random.Random(seed)
    for _ in range(steps):
        text = session.text
        want = [
            is_complete(text) if token in vocabulary.ends else bool(added) and is_prefix(text + added)
            for token, added in enumerate(vocabulary.tokens)
        ]
        mask = session.mask()
        if mask is not None:
            assert mask.tolist() == want, (text, [vocabulary.tokens[i] for i, w in enumerate(want) if w != mask[i]])
        assert session.is_complete(text) == is_complete(text), text
        for token, added in enumerate(vocabulary.tokens):
            if added:
                assert session.is_prefix(text + added) == want[token], (text, added)
                assert session.is_complete(text + added) == is_complete(text + added), (text, added)
        going = [token for token, allowed in enumerate(want) if allowed and token not in vocabulary.ends]
        if not going:
            break
        twin = session.fork()
        token = rng.choice(going)
        session.advance(token)
        assert session.text == text + vocabulary.tokens[token]
        assert twin.text == text
    return session.text
