"""The bytes of every token, read from a tokenizer's description of its decoder.

Three families of tokenizers share one idea with different spellings. Byte-level BPE writes each byte as a printable
character (Radford et al. 2019, GPT-2's ``bytes_to_unicode``). SentencePiece writes a space as ``▁`` and, if it has a
byte fallback, a byte as ``<0xNN>``. WordPiece marks tokens that continue a word, usually with ``##``, and drops spaces.
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
# The replacements of WordPiece's decoder with cleanup, in its order.
_CLEANUP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
    (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
Converter = Callable[[str], bytes]
"""From a token as the tokenizer spells it to its bytes."""


def read(tokenizer: Any) -> tuple[list[bytes], bool]:
    """The bytes of every token id, and whether ``decode`` drops a space at the start of the text.

    Special tokens are empty. Added tokens that are not special are text, as they are for ``decode``.

    Raises:
        ValueError: the tokenizer cannot be read; the message names it and gives the reason.
    """
    length = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))  # ids may have gaps
    added = {token: entry for token, entry in tokenizer.added_tokens_decoder.items() if token < length}
    special = set(tokenizer.all_special_ids)
    special |= {token for token, entry in added.items() if entry.special}
    convert, drops_leading_space = _converter(tokenizer)
    if convert is None:
        tokens = _by_decoding(tokenizer, special, length)
    else:
        tokens = []
        for token, name in enumerate(tokenizer.convert_ids_to_tokens(list(range(length)))):
            if token in special or name is None:
                tokens.append(b"")
            elif token in added:
                tokens.append(str(added[token].content).encode("utf-8", "surrogatepass"))
            else:
                tokens.append(convert(name))
    _check(tokenizer, tokens, drops_leading_space)
    return tokens, drops_leading_space


def special_tokens(tokenizer: Any, tokens: list[bytes]) -> list[tuple[str, int]]:
    """Names and ids of the special tokens, which are those without bytes in ``tokens``."""
    special = set(tokenizer.all_special_ids)
    special |= {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    ids = sorted(token for token in special if token < len(tokens) and not tokens[token])
    return [(str(name), token) for name, token in zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True)]


@cache
def byte_alphabet() -> dict[str, int]:
    """The byte of each character of byte-level BPE.

    Printable Latin-1 characters represent themselves; the other bytes are numbered from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update((chr(0x100 + number), byte) for number, byte in enumerate(others))
    return alphabet


def _converter(tokenizer: Any) -> tuple[Converter | None, bool]:
    """The function from a token's spelling to its bytes (None: unknown), and whether a leading space is dropped."""
    backend = getattr(tokenizer, "backend_tokenizer", None) or getattr(tokenizer, "_tokenizer", None)
    if backend is not None and hasattr(backend, "get_vocab_size"):
        if backend.decoder is None:  # whole words, which decode joins with spaces
            return lambda name: b" " + name.encode(), True
        return _from_decoder(tokenizer, list(_parts(json.loads(backend.decoder.__getstate__()))))
    if hasattr(tokenizer, "sp_model"):
        return lambda name: _fallback_byte(name) or name.replace("▁", " ").encode(), True
    if "byt5" in type(tokenizer).__name__.lower():
        return lambda name: bytes([ord(name)]), False
    return None, False


def _parts(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The decoders of a sequence, which may be nested."""
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for part in decoder["decoders"]:
        yield from _parts(part)


Step = Callable[[str], "str | bytes"]
"""One decoder applied to one token; bytes are final."""


def _from_decoder(tokenizer: Any, parts: list[dict[str, Any]]) -> tuple[Converter, bool]:
    """The converter of a fast tokenizer, from the decoders that its JSON description lists."""
    steps: list[Step] = []
    drops_leading_space = False
    is_fused = False
    for part in parts:
        step = _step(part)
        if step is not None:
            steps.append(step)
        elif part["type"] == "Fuse":
            is_fused = True
        elif not (is_fused and _strips_one_space(part)):
            description = json.dumps(part, ensure_ascii=False)
            raise _unsupported(tokenizer, f"the part {description} of its decoder is not supported")
        drops_leading_space |= _drops_leading_space(part)

    def convert(name: str) -> bytes:
        value: str | bytes = name
        for step in steps:
            if isinstance(value, bytes):
                break
            value = step(value)
        return value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")

    return convert, drops_leading_space


def _step(part: dict[str, Any]) -> Step | None:
    """What a decoder does to a single token; None if it acts on the whole text, or is not supported."""
    kind = part["type"]
    if kind == "ByteLevel":
        return _byte_level
    if kind == "ByteFallback":
        return lambda name: _fallback_byte(name) or name
    if kind == "Replace" and "String" in part["pattern"]:
        return _replacing(part["pattern"]["String"], part["content"])
    if kind == "Metaspace":
        return _replacing(part["replacement"], " ")
    if kind == "WordPiece":
        return partial(_word_piece, part["prefix"], part["cleanup"])
    return None


def _strips_one_space(part: dict[str, Any]) -> bool:
    """Whether a decoder only strips at most one space from the start of the text."""
    return part["type"] == "Strip" and part["content"] == " " and part["start"] <= 1 and not part["stop"]


def _drops_leading_space(part: dict[str, Any]) -> bool:
    """Whether a supported decoder drops the space at the start of the text."""
    if part["type"] == "Metaspace":
        return part.get("prepend_scheme", "always") != "never"
    return part["type"] == "WordPiece" or (part["type"] == "Strip" and part["start"] == 1)


def _byte_level(name: str) -> bytes:
    alphabet = byte_alphabet()
    try:
        return bytes(alphabet[character] for character in name)
    except KeyError:  # a token outside of the alphabet is plain text
        return name.encode()


def _fallback_byte(name: str) -> bytes | None:
    match = _BYTE.fullmatch(name)
    return bytes([int(match[1], 16)]) if match else None


def _replacing(old: str, new: str) -> Callable[[str], str]:
    return lambda name: name.replace(old, new)


def _word_piece(prefix: str, cleanup: bool, name: str) -> str:
    text = name[len(prefix) :] if prefix and name.startswith(prefix) else f" {name}"
    if cleanup:
        for old, new in _CLEANUP:
            text = text.replace(old, new)
    return text


def _by_decoding(tokenizer: Any, special: set[int], length: int) -> list[bytes]:
    """The text of each token: what decoding adds when the token comes after another one."""
    anchor = next((token for token in range(length) if token not in special and _decode(tokenizer, [token])), None)
    if anchor is None:
        raise _unsupported(tokenizer, "none of its tokens decodes to a text")
    anchor_length = len(_decode(tokenizer, [anchor]))
    tokens = []
    for token in range(length):
        text = "" if token in special else _decode(tokenizer, [anchor, token])[anchor_length:]
        if "\ufffd" in text:
            raise _unsupported(tokenizer, f"token {token} is part of a character, and its bytes are not documented")
        tokens.append(text.encode("utf-8", "surrogatepass"))
    return tokens


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _check(tokenizer: Any, tokens: list[bytes], drops_leading_space: bool) -> None:
    """Compare the bytes with what the tokenizer decodes: bytes that are wrong here would be wrong in every text."""
    for probe in _PROBES:
        ids = tokenizer(probe, add_special_tokens=False)["input_ids"]
        text = b"".join(tokens[token] for token in ids)
        if drops_leading_space and text[:1] == b" ":
            text = text[1:]
        decoded = _decode(tokenizer, ids)
        if text.decode("utf-8", "replace") != decoded:
            raise _unsupported(
                tokenizer, f"the bytes of {probe!r} were read as {text!r}, but it decodes them to {decoded!r}"
            )


def _unsupported(tokenizer: Any, reason: str) -> ValueError:
    name = getattr(tokenizer, "name_or_path", "") or "no name"
    return ValueError(
        f"tokenizer={type(tokenizer).__name__} ({name}) cannot be used for constraints: {reason}; "
        "pass a Vocabulary with the bytes of its tokens instead"
    )
