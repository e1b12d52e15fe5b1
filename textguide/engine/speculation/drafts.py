"""Guesses at the next tokens, made from tokens and distributions that were seen anyway.

A guess may be wrong; nothing that is written depends on it. Each carries its kind, so that the share of right ones is
learnt a kind at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .value import Speculation

Guess = tuple[int, str]
"""A token and its kind."""

# A kind is taken to have been right this often before it was seen.
_PRIOR_RIGHT, _PRIOR_SEEN = 1.5, 2.0
_MEMORY = 32.0


@dataclass
class Record:
    """How often the guesses of one kind were right, the latest ones counting most."""

    right: float = _PRIOR_RIGHT
    seen: float = _PRIOR_SEEN

    def add(self, right: bool) -> None:
        """Count one guess."""
        if self.seen >= _MEMORY:
            self.right, self.seen = self.right * 0.75, self.seen * 0.75
        self.right += right
        self.seen += 1

    def fade(self) -> None:
        """Forget a little, so that a kind that was left out for a while is tried again."""
        self.right = 0.95 * self.right + 0.05 * _PRIOR_RIGHT
        self.seen = 0.95 * self.seen + 0.05 * _PRIOR_SEEN

    @property
    def rate(self) -> float:
        """The share of right ones."""
        return self.right / self.seen


@dataclass
class Text:
    """One row as it grows: where its n-grams last ended, and what the guided distribution preferred behind them.

    Args:
        longest: of the n-grams.
    """

    longest: int
    tokens: list[int] = field(default_factory=list)
    ends: list[dict[tuple[int, ...], int]] = field(default_factory=list)
    earlier: list[dict[tuple[int, ...], int]] = field(default_factory=list)
    preferred: dict[tuple[int, ...], int] = field(default_factory=dict)

    def read(self, tokens: Sequence[int]) -> None:
        """Take in the whole row; what is known of its beginning already is not read again."""
        start = len(self.tokens)
        if list(tokens[:start]) != self.tokens:  # the row goes on from another one
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
                # What follows may run into the end of the text, which then repeats itself.
                period = here - end
                return [(self.tokens[end + i % period], f"lookup{n}") for i in range(length)]
        return []

    def recycle(self, length: int) -> list[Guess]:
        """The chain of tokens that the distribution last preferred, each behind the one or two before it."""
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
        """Note what the distribution preferred behind the row, and behind each of the guesses that were read after
        it."""
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
        speculation: how.
    """

    def __init__(self, speculation: Speculation) -> None:
        self.speculation = speculation
        self._texts: dict[int, Text] = {}
        self._records: dict[str, Record] = {}

    def draft(self, row: int, tokens: Sequence[int], most: int) -> list[Guess]:
        """Guesses for one row, as many as are likely enough to pay.

        Args:
            row: number of the row.
            tokens: all of it.
            most: most guesses.
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
        """Of guesses of these kinds, one behind the other, those that are likely enough to pay."""
        count = self._pays(kinds)
        if kinds and not count:
            self._records[kinds[0]].fade()
        return kinds[:count]

    def forget(self, row: int) -> None:
        """A row has ended."""
        self._texts.pop(row, None)

    def observe(self, row: int, tokens: Sequence[int], guesses: Sequence[int], preferred: Sequence[int]) -> None:
        """Learn from a pass over the newest of ``tokens`` and guesses behind it; see :meth:`Text.observe`."""
        if self.speculation.draft != "prompt-lookup":
            text = self._text(row, tokens)
            text.observe(guesses, preferred)

    def _text(self, row: int, tokens: Sequence[int]) -> Text:
        text = self._texts.setdefault(row, Text(self.speculation.ngram))
        text.read(tokens)
        return text

    def judge(self, guesses: Sequence[Guess], right: int) -> None:
        """Learn that the first ``right`` guesses were right and the one behind them, if any, was not."""
        for number, (_, kind) in enumerate(guesses[: right + 1]):
            self._records.setdefault(kind, Record()).add(number < right)

    def _pays(self, kinds: Sequence[str]) -> int:
        """How many guesses are likely enough; none where too few would be right to pay for the wider pass."""
        chance, expected, number = 1.0, 0.0, 0
        for kind in kinds:
            chance *= self._records.setdefault(kind, Record()).rate
            if chance < self.speculation.least:
                break
            expected += chance
            number += 1
        worth = self.speculation.worth if len(kinds) > 1 else self.speculation.worth / 2  # one costs less than several
        return number if expected >= worth else 0
