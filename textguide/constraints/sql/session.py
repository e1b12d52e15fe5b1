"""A query of a database, token by token."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache

import torch
from torch import Tensor

from ..base import Session, not_allowed
from ..engines.session import MaskCache
from ..utf8 import whole_characters
from ..vocabulary import Vocabulary
from .lexing import LONGEST_STRING, tokens_of
from .query import Query, Words

MOST_KEPT = 1024
"""Texts whose state is kept."""


QUOTES = "'\"`]"


class Node:
    """The tokens of a vocabulary that start with the same tokens of SQL.

    Attributes:
        ids: tokens that end here.
        children: the nodes after one more token of SQL, which may still grow, with the kind of that token.
        words: tokens that end after one more word, by the word in small letters.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.children: dict[str, tuple[str, Node]] = {}
        self.words: dict[str, list[int]] = {}
        self._any_words: dict[tuple[str, ...], Tensor] = {}

    def child(self, kind: str, piece: str) -> Node:
        """The node after one more token of SQL."""
        if kind == "word":
            piece = piece.lower()
        return self.children.setdefault(piece, (kind, Node()))[1]

    def add(self, token: int, pieces: list[tuple[str, str]]) -> None:
        """Add a token of the vocabulary, whose tokens of SQL from here on are ``pieces``."""
        if not pieces:
            self.ids.append(token)
        elif len(pieces) == 1 and pieces[0][0] == "word":
            self.words.setdefault(pieces[0][1].lower(), []).append(token)
        else:
            self.child(*pieces[0]).add(token, pieces[1:])

    def allow_words(self, words: Words, start: str, mask: Tensor) -> None:
        """Allow the tokens that end after a word.

        Args:
            words: the words that are allowed here.
            start: the part of the word that is already written.
            mask: the tokens that are allowed, bool (V,).
        """
        if words.is_any and not start:
            mask[self._all_words(words)] = True
        if words.is_any and start:
            ids = [token for word, tokens in self.words.items() if words.has_start(start + word) for token in tokens]
        else:
            rest = [word[len(start) :] for word in words.starts if word.startswith(start)]
            ids = [token for word in rest for token in self.words.get(word, ())]
        mask[torch.tensor(ids, dtype=torch.long)] = True

    def _all_words(self, words: Words) -> Tensor:
        """The tokens of words that any name may start with; kept."""
        ids = self._any_words.get(words.excluded)
        if ids is None:
            fitting = Words(is_any=True, excluded=words.excluded)
            found = [token for word, tokens in self.words.items() if fitting.has_start(word) for token in tokens]
            ids = self._any_words[words.excluded] = torch.tensor(found, dtype=torch.long)
        return ids


class TokenTree:
    """The tokens of a vocabulary, by the tokens of SQL in them.

    Attributes:
        root: tokens outside of quotation marks.
        closing: for each quotation mark the tokens that contain it, read inside of such marks.
        lengths: the number of characters of each token that may be within all quotation marks, (V,); 0 for others.
        parts: tokens that are not whole characters.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.root = Node()
        self.closing = {quote: Node() for quote in QUOTES}
        self.lengths = {quote: torch.zeros(vocabulary.size, dtype=torch.long) for quote in QUOTES}
        self.parts: list[int] = []
        for token, raw in enumerate(vocabulary.tokens):
            if not raw:
                continue
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                self.parts.append(token)
            else:
                self._add(token, text)

    def _add(self, token: int, text: str) -> None:
        pieces = tokens_of(text)
        if pieces[0][0] != "other":
            self.root.add(token, pieces)
        for quote in QUOTES:
            inside, mark, rest = text.partition(quote)
            if mark:
                self.closing[quote].child("", inside + mark).add(token, tokens_of(rest))
            elif "\n" not in text and "\0" not in text:
                self.lengths[quote][token] = len(text)


@lru_cache(maxsize=4)
def token_tree(vocabulary: Vocabulary) -> TokenTree:
    """The tree of a vocabulary; cached."""
    return TokenTree(vocabulary)


class Queries:
    """The states of texts and the masks after them, shared by all forks of a session.

    Args:
        start: the empty query.
        vocabulary: the tokens of the masks.
    """

    def __init__(self, start: Query, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.masks = MaskCache()
        self.calls = 0
        self._states: OrderedDict[str, Query | None] = OrderedDict()
        self._start = start

    def after(self, text: bytes, near: bytes) -> Query | None:
        """The query ``text``, as far as it has whole characters; None if it is not the start of a member.

        Args:
            text: the bytes of the text.
            near: the start of it whose state may be known.
        """
        parts = whole_characters(self.vocabulary.visible(text))
        if parts is None:
            return None
        written, incomplete = parts
        query = self._state(written, near)
        if query is None or (incomplete and not query.may_continue_with(incomplete)):
            return None
        return query

    def _state(self, text: str, near: bytes) -> Query | None:
        if not text:
            return self._start
        if text in self._states:
            self._states.move_to_end(text)
            return self._states[text]
        self.calls += 1
        start = whole_characters(self.vocabulary.visible(near))
        if start is not None and start[0] and text.startswith(start[0]) and len(start[0]) < len(text):
            before = self._state(start[0], b"")
            query = before and before.extended(text[len(start[0]) :])
        else:
            query = self._start.extended(text)
        self._states[text] = query
        if len(self._states) > MOST_KEPT:
            self._states.popitem(last=False)
        return query

    def mask(self, text: bytes) -> Tensor:
        """The mask after ``text``."""
        return self.masks.get(text, lambda: self._compute_mask(text))

    def _compute_mask(self, text: bytes) -> Tensor:
        tree = token_tree(self.vocabulary)
        mask = torch.zeros(self.vocabulary.size, dtype=torch.bool)
        query = self.after(text, text)
        visible = self.vocabulary.visible(text)
        parts = whole_characters(visible)
        if query is None or parts is None:
            return mask
        for end in self.vocabulary.ends:
            mask[end] = not parts[1] and query.is_complete()
        is_start = self.vocabulary.drops_leading_space and not text
        if is_start or parts[1]:
            self._check_each(range(self.vocabulary.size), text, mask)
        elif query.in_quotes:
            written = query.pending[1]
            quote = "]" if written[0] == "[" else written[0]
            if query.pending[0] == "string" or query.is_any_quoted():
                lengths = tree.lengths[quote]
                mask |= (lengths > 0) & (lengths < LONGEST_STRING - len(written))
            else:
                self._check_each(range(self.vocabulary.size), text, mask)
            _visit(tree.closing[quote], query, mask)
            self._check_each(tree.parts, text, mask)
        else:
            _visit(tree.root, query, mask)
        return mask

    def _check_each(self, tokens: list[int] | range, text: bytes, mask: Tensor) -> None:
        for token in tokens:
            added = self.vocabulary.tokens[token]
            if added:
                mask[token] = self.after(text + added, text) is not None


def _visit(node: Node, query: Query, mask: Tensor) -> None:
    """Allow the tokens below ``node`` that may follow a query."""
    words, start = query.words()
    if node.words:
        node.allow_words(words, start, mask)
    for piece, (kind, child) in node.children.items():
        if kind == "word" and not words.has_start(start + piece):
            continue
        if not query.may_follow((kind, piece)):
            continue
        after = query.extended(piece)
        if after is not None:
            mask[child.ids] = True
            if child.children or child.words:
                _visit(child, after, mask)


class QuerySession(Session):
    """One text under :class:`~textguide.constraints.SQL`."""

    def __init__(self, queries: Queries, text: bytes) -> None:
        self.text = text
        self._queries = queries
        self._vocabulary = queries.vocabulary

    @property
    def calls(self) -> int:
        """Number of texts that had to be checked."""
        return self._queries.calls

    def is_prefix(self, text: bytes) -> bool:
        return self._queries.after(text, self.text) is not None

    def is_complete(self, text: bytes) -> bool:
        parts = whole_characters(self._vocabulary.visible(text))
        if parts is None or parts[1]:
            return False
        query = self._queries.after(text, self.text)
        return query is not None and query.is_complete()

    def mask(self) -> Tensor:
        return self._queries.mask(self.text)

    def write(self, text: bytes) -> None:
        if not self.is_prefix(self.text + text):
            raise not_allowed(text, self.text)
        self.text += text

    def fork(self) -> QuerySession:
        return QuerySession(self._queries, self.text)
