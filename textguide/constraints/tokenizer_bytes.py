"""The bytes behind every token, read from what a tokenizer says about its decoder.

Three families share one idea and spell it differently. Byte-level BPE writes each byte as a printable character
(Radford et al. 2019, GPT-2's ``bytes_to_unicode``). SentencePiece writes a space as ``▁`` and, where it has a fallback,
a byte as ``<0xNN>``. WordPiece marks what continues a word, mostly by ``##``, and leaves out spaces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PROBES = (
    "Hello, world! It is 12:30.",
    " two  spaces\nand\ta tab",
    "naïve café 😀 漢字 \u200d",
    "x = {'a': [1, -2.5e3]};",
)
# What WordPiece's decoder tidies in each token, in its order.
_TIDY = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
    (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
Read = Callable[[str], bytes]


def read(tokenizer: Any) -> tuple[list[bytes], bool]:
    """The bytes of every token id, and whether ``decode`` leaves out a space in front of the text.

    Special tokens are empty. Added tokens that are not special are text, as they are for ``decode``.

    Raises:
        ValueError: the tokenizer cannot be understood; the message names it and says why.
    """
    length = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))  # ids may have gaps
    special = set(tokenizer.all_special_ids)
    added = {token: entry for token, entry in tokenizer.added_tokens_decoder.items() if token < length}
    special |= {token for token, entry in added.items() if entry.special}
    convert, drops = _reader(tokenizer)
    if convert is None:
        tokens = _by_decoding(tokenizer, special, length)
    else:
        names = tokenizer.convert_ids_to_tokens(list(range(length)))
        tokens = [
            b"" if token in special or name is None else _added(added[token]) if token in added else convert(name)
            for token, name in enumerate(names)
        ]
    _check(tokenizer, tokens, drops)
    return tokens, drops


@cache
def byte_alphabet() -> dict[str, int]:
    """The byte behind each character of byte-level BPE: printable Latin-1 stands for itself, the rest follows from
    U+0100 on in order."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {**{chr(byte): byte for byte in shown}, **{chr(0x100 + i): byte for i, byte in enumerate(hidden)}}


def _added(entry: Any) -> bytes:
    return str(entry.content).encode("utf-8", "surrogatepass")


def _reader(tokenizer: Any) -> tuple[Read | None, bool]:
    """How a token's name becomes bytes (None: nothing is known about that), and whether a leading space goes."""
    inner = getattr(tokenizer, "backend_tokenizer", None) or getattr(tokenizer, "_tokenizer", None)
    if inner is not None and hasattr(inner, "get_vocab_size"):
        if inner.decoder is None:  # words, joined by spaces
            return lambda name: b" " + name.encode(), True
        return _from_decoder(tokenizer, list(_parts(json.loads(inner.decoder.__getstate__()))))
    if hasattr(tokenizer, "sp_model"):
        return lambda name: _fallback(name) or name.replace("▁", " ").encode(), True
    if "byt5" in type(tokenizer).__name__.lower():
        return lambda name: bytes([ord(name)]), False
    return None, False


def _parts(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for part in decoder["decoders"]:
        yield from _parts(part)


def _from_decoder(tokenizer: Any, parts: list[dict[str, Any]]) -> tuple[Read, bool]:
    steps: list[Callable[[str], str | bytes]] = []
    drops, fused = False, False
    for part in parts:
        kind = part["type"]
        if kind == "ByteLevel":
            steps.append(_byte_level)
        elif kind == "ByteFallback":
            steps.append(lambda name: _fallback(name) or name)
        elif kind == "Replace" and "String" in part["pattern"]:
            steps.append(_replacing(part["pattern"]["String"], part["content"]))
        elif kind == "Metaspace":
            steps.append(_replacing(part["replacement"], " "))
            drops |= part.get("prepend_scheme", "always") != "never"
        elif kind == "WordPiece":
            steps.append(partial(_word_piece, part["prefix"], part["cleanup"]))
            drops = True
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and part["content"] == " " and fused and part["start"] <= 1 and not part["stop"]:
            drops |= part["start"] == 1
        else:
            raise _cannot(tokenizer, f"its decoder's part {json.dumps(part, ensure_ascii=False)} is not known")

    def convert(name: str) -> bytes:
        value: str | bytes = name
        for step in steps:
            if isinstance(value, bytes):
                break
            value = step(value)
        return value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")

    return convert, drops


def _byte_level(name: str) -> bytes:
    alphabet = byte_alphabet()
    try:
        return bytes(alphabet[character] for character in name)
    except KeyError:
        return name.encode()


def _fallback(name: str) -> bytes | None:
    found = _BYTE.fullmatch(name)
    return bytes([int(found[1], 16)]) if found else None


def _replacing(old: str, new: str) -> Callable[[str], str]:
    return lambda name: name.replace(old, new)


def _word_piece(mark: str, tidy: bool, name: str) -> str:
    text = name[len(mark) :] if mark and name.startswith(mark) else f" {name}"
    for old, new in _TIDY if tidy else ():
        text = text.replace(old, new)
    return text


def _by_decoding(tokenizer: Any, special: set[int], length: int) -> list[bytes]:
    """Each token's text, as the difference that it makes behind another token."""
    anchor = next((token for token in range(length) if token not in special and _decode(tokenizer, [token])), None)
    if anchor is None:
        raise _cannot(tokenizer, "no token of it decodes to a text")
    before = _decode(tokenizer, [anchor])
    tokens = []
    for token in range(length):
        text = "" if token in special else _decode(tokenizer, [anchor, token])[len(before) :]
        if "\ufffd" in text:
            raise _cannot(tokenizer, f"token {token} is a part of a character, and nothing says which bytes it has")
        tokens.append(text.encode("utf-8", "surrogatepass"))
    return tokens


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _check(tokenizer: Any, tokens: list[bytes], drops: bool) -> None:
    """Compare with what the tokenizer decodes; what it has misread it may misread in every text."""
    for probe in _PROBES:
        ids = tokenizer(probe, add_special_tokens=False)["input_ids"]
        text = b"".join(tokens[token] for token in ids)
        text = text[1:] if drops and text[:1] == b" " else text
        decoded = _decode(tokenizer, ids)
        if text.decode("utf-8", "replace") != decoded:
            raise _cannot(tokenizer, f"its tokens of {probe!r} give {text!r}, and it decodes them to {decoded!r}")


def _cannot(tokenizer: Any, reason: str) -> ValueError:
    name = getattr(tokenizer, "name_or_path", "") or "no name"
    return ValueError(
        f"tokenizer={type(tokenizer).__name__} ({name}) cannot be used for constraints: {reason}; "
        "give a Vocabulary with the bytes of its tokens instead"
    )
