"""Characters that may complete an unfinished one: a representative of each class that a pattern tells apart."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import product
from typing import Any

from ..utf8 import completions
from .syntax import PatternError
from .tokens import Token, flags_of, folds_fully

_LINE_ENDS = r"[\n-\r\x1C-\x1E\x85\u2028\u2029]"
_FLAGS = "aisw"
"""Flags that change which characters a set or class matches."""


class Representatives:
    """The distinctions of a pattern among characters: its sets and classes, and comparisons with the text.

    Args:
        tokens: those of the pattern.
        version: ``regex``'s flag for its behaviour.

    Raises:
        PatternError: it is not known which characters the pattern tells apart.
    """

    def __init__(self, tokens: list[Token], version: int) -> None:
        import regex

        kinds = {token.kind for token in tokens}
        flags = flags_of(tokens)
        is_fuzzy_set = any(token.kind == "fuzzy" and ":" in token.text for token in tokens)
        if folds_fully(tokens) or "cluster" in kinds or is_fuzzy_set:
            raise PatternError("what these constructs test in a character is not known")
        # A flag may hold for a part of the pattern only, so each set is compiled with and without it.
        variants = [version]
        for letter in _FLAGS:
            if letter in flags:
                flag = getattr(regex, letter.upper())
                variants += [variant | flag for variant in variants]
        try:
            self._classes = [
                regex.compile(f"(?:{text})+", variant) for text, variant in product(_sets(tokens, kinds), variants)
            ]
        except regex.error as error:
            raise PatternError(str(error)) from None
        self._compares = "reference" in kinds
        self._folds = "i" in flags
        self._known: dict[bytes, list[str]] = {}

    def of(self, first_bytes: bytes, text: str) -> list[str]:
        """Characters that start with ``first_bytes`` and may follow ``text``: at least one of each class."""
        if first_bytes not in self._known:
            self._known[first_bytes] = self._one_per_class(completions(first_bytes))
        characters = list(self._known[first_bytes])
        if self._compares:
            for character in set(text):
                characters += _equal(character, first_bytes, self._folds)
        return characters

    def _one_per_class(self, characters: range) -> list[str]:
        every = "".join(map(chr, characters))
        bounds = {0}
        spans: list[list[int]] = []
        for compiled in self._classes:
            edges = [edge for match in compiled.finditer(every) for edge in match.span()]
            spans.append(edges)
            bounds |= set(edges)
        # Nothing changes between two edges, and two parts inside the same spans are in the same class.
        representatives: dict[tuple[int, ...], str] = {}
        for start in sorted(bounds):
            if start < len(every):
                representatives.setdefault(tuple(bisect_right(edges, start) % 2 for edges in spans), every[start])
        return list(representatives.values())


def _sets(tokens: list[Token], kinds: set[str]) -> list[str]:
    """Everything that a pattern tests a single character with."""
    texts = {token.text for token in tokens if token.kind == "character"}
    if "boundary" in kinds:
        texts.add(r"\w")
    if kinds & {"start", "end"}:
        texts.add(_LINE_ENDS)
    return sorted(texts)


@lru_cache(maxsize=4096)
def _equal(character: str, first_bytes: bytes, folds: bool) -> list[str]:
    """The characters that start with ``first_bytes`` and equal ``character``, ignoring case if ``folds``."""
    import regex

    candidates = completions(first_bytes)
    if not folds:
        return [character] if ord(character) in candidates else []
    compiled: Any = regex.compile(regex.escape(character), regex.I)
    return [match[0] for match in compiled.finditer("".join(map(chr, candidates)))]
