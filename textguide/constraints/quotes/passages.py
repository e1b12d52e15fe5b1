"""Documents as sequences of units, characters or words: the positions at which quotes may start and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from .suffixes import Interval, SuffixIndex, joined

CHARACTER = "character"
WORD = "word"
UNITS = (CHARACTER, WORD)
EXACT = "exact"
NORMALIZED = "normalized"
WHITESPACE = (EXACT, NORMALIZED)
Spelling = Callable[[str], bytes]
"""How a character is written."""


@dataclass(frozen=True)
class Passages:
    """The texts that may be quoted.

    Args:
        index: the documents as they are written.
        ends: whether a quote may end before each position of the index, bool.
        origins: for each position of the index the character of its document, int64.
        documents: for each position of the index its document, int64.
    """

    index: SuffixIndex
    ends: NDArray[np.bool_]
    origins: NDArray[np.int64]
    documents: NDArray[np.int64]

    def may_end(self, interval: Interval) -> bool:
        """Whether a quote may end after the substring of an interval."""
        positions = self.index.positions(interval)
        return bool(self.ends[positions + interval.depth].any())

    def always_ends(self, interval: Interval, before: int) -> bool:
        """Whether a unit ends ``before`` bytes before the end of the substring, wherever it appears."""
        positions = self.index.positions(interval)
        return bool(self.ends[positions + interval.depth - before].all())

    def sources(self, interval: Interval) -> list[tuple[int, int, int]]:
        """The document, and the first and last character (excluded), of each place with the substring."""
        found = []
        for start in np.sort(self.index.positions(interval)).tolist():
            end = start + interval.depth
            if self.ends[end]:
                # The end of the last character, before whitespace that normalisation left out.
                last = int(self.origins[end - 1]) + 1 if interval.depth else int(self.origins[start])
                found.append((int(self.documents[start]), int(self.origins[start]), last))
        return found


@lru_cache(maxsize=16)
def passages(documents: tuple[str, ...], whitespace: str, unit: str, least: int, spelling: Spelling) -> Passages:
    """The passages of some documents.

    Args:
        documents: the texts.
        whitespace: ``exact`` or ``normalized``, as for :class:`~.constraint.Quote`.
        unit: ``character`` or ``word``.
        least: smallest number of units after each start.
        spelling: how a character is written.
    """
    written: list[bytes] = []
    origins: list[int] = []
    numbers: list[int] = []
    starts: list[int] = []
    ends: list[bool] = []
    position = 0
    for number, document in enumerate(documents):
        kept = _kept(document, whitespace)
        if unit == WORD:  # nothing that is written after the last word can become a quote
            kept = kept[: len("".join(character for character, _ in kept).rstrip())]
        pieces = [spelling(character) for character, _ in kept]
        offsets = list(accumulate(map(len, pieces), initial=position))
        starts += [offsets[at] for at in _starts([character for character, _ in kept], unit, least)]
        marks = _ends([character for character, _ in kept], unit)
        for (_, origin), piece, may_end in zip(kept, pieces, marks, strict=False):
            origins += [origin] * len(piece)
            ends += [may_end] + [False] * (len(piece) - 1)
        origins.append(len(document))
        ends.append(marks[-1])
        written.append(b"".join(pieces))
        numbers += [number] * (len(written[-1]) + 1)
        position = offsets[-1] + 1  # after the separator
    index = SuffixIndex(joined(written), np.array(starts, dtype=np.int64))
    return Passages(index, np.array(ends), np.array(origins), np.array(numbers))


def _kept(document: str, whitespace: str) -> list[tuple[str, int]]:
    """The characters that a quote may contain, and the position of each in the document."""
    if whitespace == EXACT:
        return [(character, at) for at, character in enumerate(document)]
    kept = []
    for at, character in enumerate(document):
        if not character.isspace():
            kept.append((character, at))
        elif kept and kept[-1][0] != " ":
            kept.append((" ", at))
    return kept[:-1] if kept and kept[-1][0] == " " else kept


def _starts(characters: Sequence[str], unit: str, least: int) -> list[int]:
    """The characters at which a quote of ``least`` units may start."""
    if unit == CHARACTER:
        return list(range(len(characters) - least + 1))
    blank = [True, *(character.isspace() for character in characters)]
    words = [at for at, (before, here) in enumerate(pairwise(blank)) if before and not here]
    return words[: max(0, len(words) - least + 1)]


def _ends(characters: Sequence[str], unit: str) -> list[bool]:
    """Whether a quote may end before each character, and at the end of the document."""
    if unit == CHARACTER:
        return [True] * (len(characters) + 1)
    blank = [True, *(character.isspace() for character in characters), True]
    return [here and not before for before, here in pairwise(blank)]
