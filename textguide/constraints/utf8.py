"""UTF-8 that ends inside a character, as texts do that are written by tokens."""

from __future__ import annotations

import codecs


def whole_characters(text: bytes) -> tuple[str, bytes] | None:
    """Split a text into its whole characters and the first bytes of an incomplete one; None if it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        characters = decoder.decode(text)
    except UnicodeDecodeError:
        return None
    incomplete = decoder.getstate()[0]
    # Python's decoder waits for the third byte of a surrogate before it refuses it; it can be refused here.
    if incomplete[:1] == b"\xed" and incomplete[1:2] > b"\x9f":
        return None
    return characters, incomplete


def completions(first_bytes: bytes) -> range:
    """The code points of the characters whose UTF-8 starts with ``first_bytes``, an incomplete character."""
    if first_bytes[0] < 0xE0:
        length = 2
    elif first_bytes[0] < 0xF0:
        length = 3
    else:
        length = 4
    low = high = first_bytes
    if len(first_bytes) == 1:
        # The second byte has a narrower range if another one would give an overlong form, a surrogate or a code point
        # above U+10FFFF.
        low += {0xE0: b"\xa0", 0xF0: b"\x90"}.get(first_bytes[0], b"\x80")
        high += {0xED: b"\x9f", 0xF4: b"\x8f"}.get(first_bytes[0], b"\xbf")
    low += b"\x80" * (length - len(low))
    high += b"\xbf" * (length - len(high))
    return range(ord(low.decode()), ord(high.decode()) + 1)
