"""A vocabulary in the order of its bytes: one rejected byte string rejects every token that starts with it."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from functools import lru_cache

import torch
from torch import Tensor

from ..constraints import Session, Vocabulary
from .awrs import Knowledge, Mass, Span

WORTH_A_CALL = 0.3
"""Number of draws that a further check is expected to save, above which it is made."""


class Trie:
    """The tokens sorted by their bytes, then the end tokens, then the tokens that no constraint allows.

    Tokens that start with the same bytes are adjacent, so a subtree is a span of positions.

    Attributes:
        order: token id of every position, (V,).
        rank: position of every token id, (V,).
        strings: bytes of the first positions, ascending.
        ends: the span of the end tokens.
        without_bytes: the span of the tokens that no constraint allows.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        tokens = vocabulary.tokens
        ends = vocabulary.ends
        plain = sorted((i for i, text in enumerate(tokens) if text and i not in ends), key=lambda i: tokens[i])
        without_bytes = [i for i, text in enumerate(tokens) if not text and i not in ends]
        self.order = torch.tensor([*plain, *sorted(ends), *without_bytes])
        self.rank = torch.empty_like(self.order)
        self.rank[self.order] = torch.arange(len(tokens))
        self.strings = [tokens[i] for i in plain]
        self.ends: Span = (len(plain), len(plain) + len(ends))
        self.without_bytes: Span = (self.ends[1], len(tokens))

    def span(self, prefix: bytes) -> Span:
        """The positions of the tokens that start with ``prefix``."""
        low = bisect_left(self.strings, prefix)
        stem = prefix.rstrip(b"\xff")
        if not stem:
            return low, len(self.strings)
        return low, bisect_left(self.strings, stem[:-1] + bytes([stem[-1] + 1]), low)

    def equal(self, text: bytes) -> range:
        """The positions of the tokens that equal ``text``; a vocabulary may contain it twice."""
        low = high = bisect_left(self.strings, text)
        while high < len(self.strings) and self.strings[high] == text:
            high += 1
        return range(low, high)


@lru_cache(maxsize=8)
def trie_of(vocabulary: Vocabulary) -> Trie:
    """The trie of a vocabulary, cached."""
    return Trie(vocabulary)


class TrieKnowledge(Knowledge):
    """What is known about the tokens after one text; shared by all particles with that text.

    Args:
        trie: the vocabulary.
        session: the constraint after the text; it is never advanced.
        parent: knowledge about a shorter text, and the bytes from there to this text.
    """

    def __init__(self, trie: Trie, session: Session, parent: tuple[TrieKnowledge, bytes] | None = None) -> None:
        super().__init__(rejected=[trie.without_bytes] if trie.without_bytes[0] < trie.without_bytes[1] else [])
        self.trie = trie
        self.session = session
        self.text = session.text
        self.verdicts: dict[bytes, bool] = {}
        self._prefixes: set[bytes] = {b""}
        if parent is not None:
            known, step = parent
            for text, verdict in known.verdicts.items():
                if len(text) > len(step) and text.startswith(step):
                    self._note(text[len(step) :], verdict)

    def check(self, position: int, mass: Mass, rejections: int) -> bool:
        """Check the bytes of a token; if they are rejected, check shorter ones as long as that is worth a call."""
        low, high = self.trie.ends
        if low <= position < high:
            if self.is_complete():
                self.accepted.update(range(low, high))
                return True
            self.rejected.append((low, high))
            return False
        text = self.trie.strings[position]
        good = next(n for n in range(len(text), -1, -1) if text[:n] in self._prefixes)
        bad = len(text) + 1
        # After some rejections another one is likely, and a short string would reject more tokens.
        if rejections and good + 1 < len(text) and self._gain(text, good + 1, mass, rejections) > WORTH_A_CALL:
            if self._is_prefix(text[: good + 1]):
                good += 1
            else:
                bad = good + 1
        if bad > len(text):
            if self._is_prefix(text):
                return True
            bad = len(text)
        nearest = True
        while bad - good > 1 and self._gain(text, good + 1, mass, rejections, bad) > WORTH_A_CALL:
            # First the shortest string, which causes most rejections, then bisection.
            middle = good + 1 if nearest else (good + bad) // 2
            nearest = False
            if self._is_prefix(text[:middle]):
                good = middle
            else:
                bad = middle
        return False

    def is_complete(self) -> bool:
        """Whether an end token may follow."""
        if b"" not in self.verdicts:
            self.verdicts[b""] = bool(self.session.is_complete(self.text))
        return self.verdicts[b""]

    def find_all(self) -> None:
        """Check every token, subtree by subtree."""
        if self.is_complete():
            self.accepted.update(range(*self.trie.ends))
        elif self.trie.ends[0] < self.trie.ends[1]:
            self.rejected.append(self.trie.ends)
        strings = self.trie.strings
        stack = [(0, len(strings), 0)]
        while stack:
            low, high, depth = stack.pop()
            if low >= high:
                continue
            first = strings[low]
            last = strings[high - 1]
            shared = depth
            while shared < min(len(first), len(last)) and first[shared] == last[shared]:
                shared += 1
            if shared > depth and not self._is_prefix(first[:shared]):
                continue
            start = low
            while start < high and len(strings[start]) == shared:
                start += 1
            while start < high:
                end = min(high, self.trie.span(strings[start][: shared + 1])[1])
                if end - start == 1:
                    self._is_prefix(strings[start])
                else:
                    stack.append((start, end, shared))
                start = end

    def mask(self) -> Tensor:
        """The allowed tokens in token order, bool (V,), as :meth:`find_all` found them."""
        allowed = torch.zeros(self.trie.order.shape[0], dtype=torch.bool)
        if self.accepted:
            allowed[self.trie.order[torch.tensor(sorted(self.accepted))]] = True
        return allowed

    def _gain(self, text: bytes, length: int, mass: Mass, rejections: int, bad: int | None = None) -> float:
        """Number of draws that are saved if ``text[:length]`` is rejected.

        It is the mass that would be rejected in addition to what is rejected anyway (the token itself, or
        ``text[:bad]``), times the expected number of further draws: the number of rejections so far.
        """
        share = mass.share(*self.trie.span(text[:length]))
        if bad is None:
            share -= mass.share(*self.trie.span(text))
        return share * rejections

    def _is_prefix(self, text: bytes) -> bool:
        if text in self._prefixes:
            return True
        if text not in self.verdicts:
            self._note(text, bool(self.session.is_prefix(self.text + text)))
        return self.verdicts[text]

    def _note(self, text: bytes, verdict: bool) -> None:
        self.verdicts[text] = verdict
        if not verdict:
            self.rejected.append(self.trie.span(text))
            return
        for length in range(len(text), 0, -1):
            prefix = text[:length]
            if prefix in self._prefixes:
                break
            self._prefixes.add(prefix)
            self.accepted.update(self.trie.equal(prefix))


class Memory:
    """The knowledge about the most recent texts of a run.

    Args:
        vocabulary: the model's vocabulary.
        texts: number of texts.
    """

    def __init__(self, vocabulary: Vocabulary, texts: int) -> None:
        self.trie = trie_of(vocabulary)
        self._texts = texts
        self._known: OrderedDict[bytes, TrieKnowledge] = OrderedDict()

    def about(self, session: Session, parent: TrieKnowledge | None = None) -> TrieKnowledge:
        """The knowledge about the tokens after the text of ``session``.

        Args:
            session: the constraint after the text.
            parent: knowledge about the text before its last token.
        """
        text = session.text
        known = self._known.get(text)
        if known is None:
            step = None if parent is None else (parent, text[len(parent.text) :])
            known = self._known[text] = TrieKnowledge(self.trie, session.fork(), step)
            if len(self._known) > self._texts:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(text)
        return known
