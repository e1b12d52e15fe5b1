"""Characters of which a text has the first bytes: those that stand for all the others in a pattern."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import product
from typing import Any

from ..utf8 import completions
from .syntax import PatternError
from .tokens import Token, flags_of, folds_fully

_LINE_ENDS = r"[\n-\r\x1C-\x1E\x85\u2028\u2029]"


class Representatives:
    """What a pattern can tell apart among characters: it asks its sets and classes, and compares with the text.

    Args:
        tokens: of the pattern.
        version: ``regex``'s flag for its behaviour.

    Raises:
        PatternError: nothing is known about the characters of the pattern.
    """

    def __init__(self, tokens: list[Token], version: int) -> None:
        import regex

        kinds, flags = {token.kind for token in tokens}, flags_of(tokens)
        texts = {token.text for token in tokens if token.kind == "character"}
        if (
            folds_fully(tokens)
            or "cluster" in kinds
            or any(token.kind == "fuzzy" and ":" in token.text for token in tokens)
        ):
            raise PatternError("what these constructs ask of a character is not known")
        texts |= {r"\w"} if "boundary" in kinds else set()
        texts |= {_LINE_ENDS} if kinds & {"start", "end"} else set()
        variants = [0]
        for letter, flag in (("a", regex.A), ("i", regex.I), ("s", regex.S), ("w", regex.W)):
            variants += [variant | flag for variant in variants] if letter in flags else []
        try:
            self._asked = [
                regex.compile(f"(?:{text})+", version | flag) for text, flag in product(sorted(texts), variants)
            ]
        except regex.error as error:
            raise PatternError(str(error)) from None
        self._compares = "reference" in kinds
        self._folds = "i" in flags
        self._ranges: dict[bytes, list[str]] = {}

    def of(self, begun: bytes, text: str) -> list[str]:
        """Characters behind ``text`` that start with the bytes ``begun``: one of all that the pattern takes alike."""
        if begun not in self._ranges:
            self._ranges[begun] = self._classes(completions(begun))
        found = self._ranges[begun]
        if self._compares:
            found = [*found, *(same for known in set(text) for same in _same(known, begun, self._folds))]
        return found

    def _classes(self, characters: range) -> list[str]:
        every = "".join(map(chr, characters))
        bounds = {0}
        spans: list[list[int]] = []
        for asked in self._asked:
            edges = [edge for found in asked.finditer(every) for edge in found.span()]
            spans.append(edges)
            bounds |= set(edges)
        # Between two edges nothing changes; those that are inside of the same spans are alike.
        alike: dict[tuple[int, ...], str] = {}
        for start in sorted(bounds):
            if start < len(every):
                alike.setdefault(tuple(bisect_right(edges, start) % 2 for edges in spans), every[start])
        return list(alike.values())


@lru_cache(maxsize=4096)
def _same(known: str, begun: bytes, folds: bool) -> list[str]:
    """The characters that start with ``begun`` and are the same as ``known``, in either case where that is ignored."""
    import regex

    characters = completions(begun)
    if not folds:
        return [known] if ord(known) in characters else []
    asked: Any = regex.compile(regex.escape(known), regex.I)
    return [found[0] for found in asked.finditer("".join(map(chr, characters)))]
