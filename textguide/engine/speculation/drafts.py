"""Guess the next tokens from tokens and distributions that were computed anyway.

A guess may be wrong; the text does not depend on it. Each guess has a kind, and the share of right guesses is learned
per kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .value import Speculation

Guess = tuple[int, str]
"""A token and its kind."""

# A new kind starts as if it had been right in 1.5 of 2 guesses, so that it is tried.
_PRIOR_RIGHT = 1.5
_PRIOR_COUNT = 2.0
_MEMORY = 32.0


@dataclass
class Record:
    """How often the guesses of one kind were right; recent guesses count most."""

    right: float = _PRIOR_RIGHT
    count: float = _PRIOR_COUNT

    def add(self, right: bool) -> None:
        """Count one guess."""
        if self.count >= _MEMORY:
            self.right *= 0.75
            self.count *= 0.75
        self.right += right
        self.count += 1

    def fade(self) -> None:
        """Move towards the prior, so that a kind that was not used for a while is tried again."""
        self.right = 0.95 * self.right + 0.05 * _PRIOR_RIGHT
        self.count = 0.95 * self.count + 0.05 * _PRIOR_COUNT

    @property
    def rate(self) -> float:
        """The share of right guesses."""
        return self.right / self.count


@dataclass
class Text:
    """One growing row: where its n-grams last ended, and the tokens that the guided distribution preferred after them.

    Args:
        longest: length of the longest n-grams.
    """

    longest: int
    tokens: list[int] = field(default_factory=list)
    ends: list[dict[tuple[int, ...], int]] = field(default_factory=list)
    earlier: list[dict[tuple[int, ...], int]] = field(default_factory=list)
    preferred: dict[tuple[int, ...], int] = field(default_factory=dict)

    def read(self, tokens: Sequence[int]) -> None:
        """Read the whole row; tokens that were read before are skipped."""
        start = len(self.tokens)
        if list(tokens[:start]) != self.tokens:  # the row continues another one
            start = 0
            self.tokens.clear()
            self.ends.clear()
        if not self.ends:
            self.ends = [{} for _ in range(self.longest)]
            self.earlier = [{} for _ in range(self.longest)]
        for token in tokens[start:]:
            if self.tokens:
                self._prefer(self.tokens, token)
            self.tokens.append(token)
            here = len(self.tokens)
            for n in range(1, min(self.longest, here) + 1):
                key = tuple(self.tokens[here - n :])
                if key in self.ends[n - 1]:
                    self.earlier[n - 1][key] = self.ends[n - 1][key]
                self.ends[n - 1][key] = here

    def look_up(self, length: int) -> list[Guess]:
        """What followed the last occurrence of the longest n-gram that the row ends with."""
        here = len(self.tokens)
        for n in range(min(self.longest, here), 0, -1):
            end = self.earlier[n - 1].get(tuple(self.tokens[here - n :]))
            if end is not None:
                # If the continuation reaches the end of the text, it repeats from there.
                period = here - end
                return [(self.tokens[end + i % period], f"lookup{n}") for i in range(length)]
        return []

    def recycle(self, length: int) -> list[Guess]:
        """A chain of tokens, each of which the distribution last preferred after the one or two tokens before it."""
        last = self.tokens[-2:]
        guesses: list[Guess] = []
        while len(guesses) < length:
            for n in (2, 1):
                following = self.preferred.get(tuple(last[-n:])) if len(last) >= n else None
                if following is not None:
                    break
            if following is None:
                break
            guesses.append((following, f"recycled{n}"))
            last = [*last[-1:], following]
        return guesses

    def observe(self, guesses: Sequence[int], preferred: Sequence[int]) -> None:
        """Record the tokens that the distribution preferred after the row and after each guess that followed."""
        before = self.tokens[-2:]
        self._prefer(before, preferred[0])
        for token, following in zip(guesses, preferred[1:], strict=True):
            before.append(token)
            self._prefer(before, following)

    def _prefer(self, tokens: Sequence[int], following: int) -> None:
        self.preferred[(tokens[-1],)] = following
        if len(tokens) > 1:
            self.preferred[tuple(tokens[-2:])] = following


class Drafter:
    """Makes the guesses for the rows of a batch.

    Args:
        speculation: the settings.
    """

    def __init__(self, speculation: Speculation) -> None:
        self.speculation = speculation
        self._texts: dict[int, Text] = {}
        self._records: dict[str, Record] = {}

    def draft(self, row: int, tokens: Sequence[int], most: int) -> list[Guess]:
        """Guess the next tokens of one row, as many as are likely enough to pay off.

        Args:
            row: number of the row.
            tokens: all tokens of the row.
            most: the largest number of guesses.
        """
        text = self._text(row, tokens)
        most = min(most, self.speculation.tokens)
        guesses: list[Guess] = []
        if self.speculation.draft != "recycling":
            guesses = text.look_up(most)
        if self.speculation.draft == "recycling" or (
            self.speculation.draft == "both" and not self._pays([kind for _, kind in guesses])
        ):
            guesses = text.recycle(most)
        return guesses[: len(self.paying([kind for _, kind in guesses]))]

    def paying(self, kinds: Sequence[str]) -> Sequence[str]:
        """The first of these kinds of consecutive guesses, as many as are likely enough to pay off."""
        count = self._pays(kinds)
        if kinds and not count:
            self._records[kinds[0]].fade()
        return kinds[:count]

    def forget(self, row: int) -> None:
        """Drop the text of a row that has ended."""
        self._texts.pop(row, None)

    def observe(self, row: int, tokens: Sequence[int], guesses: Sequence[int], preferred: Sequence[int]) -> None:
        """Learn from a pass over the newest of ``tokens`` and the guesses after it; see :meth:`Text.observe`."""
        if self.speculation.draft != "prompt-lookup":
            text = self._text(row, tokens)
            text.observe(guesses, preferred)

    def _text(self, row: int, tokens: Sequence[int]) -> Text:
        text = self._texts.setdefault(row, Text(self.speculation.ngram))
        text.read(tokens)
        return text

    def judge(self, guesses: Sequence[Guess], right: int) -> None:
        """Learn that the first ``right`` guesses were right, and the next one, if any, was not."""
        for number, (_, kind) in enumerate(guesses[: right + 1]):
            self._records.setdefault(kind, Record()).add(number < right)

    def _pays(self, kinds: Sequence[str]) -> int:
        """How many guesses are likely enough; 0 if too few would be right to pay for the longer pass."""
        chance = 1.0
        expected = 0.0
        number = 0
        for kind in kinds:
            chance *= self._records.setdefault(kind, Record()).rate
            if chance < self.speculation.least:
                break
            expected += chance
            number += 1
        worth = self.speculation.worth if len(kinds) > 1 else self.speculation.worth / 2  # one costs less than several
        return number if expected >= worth else 0
