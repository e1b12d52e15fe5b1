"""Texts that appear verbatim in a document."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...support.checks import one_of, whole_number
from ..arguments import read_text, shortened
from ..base import Citation, Constraint, Session, Source, UnsatisfiableError, not_allowed
from ..utf8 import whole_characters
from ..vocabulary import Vocabulary
from .passages import CHARACTER, EXACT, UNITS, WHITESPACE, WORD, Passages, passages
from .suffixes import Interval

MOST_SOURCES = 16
"""Places of one quote that are reported."""


class _Verbatim(Constraint, ABC):
    """The common part of :class:`Quote` and :class:`Corpus`."""

    whitespace: str
    unit: str
    least: int
    most: int | None

    @property
    @abstractmethod
    def named_documents(self) -> tuple[tuple[str, str], ...]:
        """The name and the text of each document."""

    def _check(self) -> None:
        one_of("whitespace", self.whitespace, WHITESPACE)
        one_of("unit", self.unit, UNITS)
        whole_number("least", self.least, 1, "a quote is not empty")
        if self.most is not None:
            whole_number("most", self.most, self.least, "it is at least as large as least; None sets no limit")

    @property
    def passages(self) -> Passages:
        """The documents, prepared; cached."""
        texts = tuple(text for _, text in self.named_documents)
        return passages(texts, self.whitespace, self.unit, self.least, str.encode)

    def sources(self, text: str) -> tuple[Source, ...]:
        """Where ``text`` appears, at most :data:`MOST_SOURCES` places, in the order of the documents.

        Raises:
            ValueError: it is not a quote.
        """
        found = self.passages
        interval = found.index.extend(found.index.everything, text.encode())
        counted = _count(text, self.unit)
        is_quote = self.least <= counted and (self.most is None or counted <= self.most)
        places = found.sources(interval) if is_quote else []
        if not places:
            raise ValueError(f"text={shortened(text)!r} is not a quote of {self!r}")
        names = [name for name, _ in self.named_documents]
        return tuple(Source(names[number], start, end) for number, start, end in places[:MOST_SOURCES])

    def citations(self, text: str) -> tuple[Citation, ...]:
        return (Citation(0, len(text), self.sources(text)),)

    def start(self, vocabulary: Vocabulary) -> Session:
        found = self.passages
        if found.index.everything.high == 0:
            raise UnsatisfiableError(
                f"{self!r} has no quote of {self.least} {self.unit}s; pass longer documents, or a smaller least="
            )
        return QuoteSession(found, self.unit, self.least, self.most, vocabulary, b"", found.index.everything, [0])


@dataclass(frozen=True, repr=False)
class Quote(_Verbatim):
    """Texts that appear verbatim in a text, for citations.

    Args:
        text: the text, or the path of a file (a ``pathlib.Path``).
        whitespace: ``exact``; or ``normalized``: every run of whitespace in the text is written as one space.
        unit: a quote may start and end between any two characters, or only between words (``word``), which are
            separated by whitespace.
        least: smallest number of units.
        most: largest number of units; None: no limit.

    Raises:
        ValueError: a field has a value that cannot work. :meth:`start` raises an :class:`UnsatisfiableError` if the
            text is shorter than ``least``.

    Example:
        >>> Quote("The cat sat.", unit="word").sources("cat sat.")
        (Source(document='text', start=4, end=12),)
    """

    text: Any
    whitespace: str = EXACT
    unit: str = CHARACTER
    least: int = 1
    most: int | None = None

    kind = "quote"

    def __post_init__(self) -> None:
        self._check()
        object.__setattr__(self, "text", _text_of("text", self.text))

    def __repr__(self) -> str:
        return f"Quote({shortened(self.text)!r})"

    @property
    def named_documents(self) -> tuple[tuple[str, str], ...]:
        """The text, called ``text``."""
        return (("text", self.text),)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "text": self.text, **_options(self)}


@dataclass(frozen=True, repr=False)
class Corpus(_Verbatim):
    """Texts that appear verbatim in one of several documents, for citations in retrieval.

    Args:
        documents: texts and paths of files (``pathlib.Path``), or a dict of them by name. Documents without a name are
            called by their path or their number.
        whitespace: as for :class:`Quote`.
        unit: as for :class:`Quote`.
        least: as for :class:`Quote`.
        most: as for :class:`Quote`.

    Raises:
        ValueError: there are no documents, a file cannot be read, or another field has a value that cannot work.

    Example:
        >>> Corpus({"a.txt": "The cat sat.", "b.txt": "The cat ran."}).sources("cat ran")
        (Source(document='b.txt', start=4, end=11),)
    """

    documents: Any
    whitespace: str = EXACT
    unit: str = CHARACTER
    least: int = 1
    most: int | None = None

    kind = "corpus"

    def __post_init__(self) -> None:
        self._check()
        object.__setattr__(self, "documents", _documents_of(self.documents))

    def __repr__(self) -> str:
        return f"Corpus({len(self.documents)} documents)"

    @property
    def named_documents(self) -> tuple[tuple[str, str], ...]:
        """The documents."""
        named: tuple[tuple[str, str], ...] = self.documents
        return named

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "documents": dict(self.documents), **_options(self)}


class QuoteSession(Session):
    """One text that is quoted.

    Args:
        passages: the documents.
        unit: ``character`` or ``word``.
        least: smallest number of units.
        most: largest number of units, or None.
        vocabulary: what each token adds.
        text: the bytes written so far.
        interval: the places of the text.
        calls: a list of one number, which forks share.
    """

    def __init__(
        self,
        passages: Passages,
        unit: str,
        least: int,
        most: int | None,
        vocabulary: Vocabulary,
        text: bytes,
        interval: Interval,
        calls: list[int],
    ) -> None:
        self.text = text
        self._passages = passages
        self._unit = unit
        self._least = least
        self._most = most
        self._vocabulary = vocabulary
        self._interval = interval
        self._calls = calls

    @property
    def calls(self) -> int:
        return self._calls[0]

    def is_prefix(self, text: bytes) -> bool:
        self._calls[0] += 1
        return self._may_continue(text, self._interval_of(text))

    def is_complete(self, text: bytes) -> bool:
        self._calls[0] += 1
        visible = self._vocabulary.visible(text)
        characters = whole_characters(visible)
        if characters is None or characters[1] or _count(characters[0], self._unit) < self._least:
            return False
        interval = self._interval_of(text)
        return self._may_continue(text, interval) and self._passages.may_end(interval)

    def mask(self) -> Tensor:
        self._calls[0] += 1
        vocabulary = self._vocabulary
        mask = torch.zeros(vocabulary.size, dtype=torch.bool)
        mask[torch.tensor(self._passages.index.following(self._interval, vocabulary, not self.text)).long()] = True
        if not self.text:
            blank = [
                number for number, token in enumerate(vocabulary.tokens) if token and not vocabulary.visible(token)
            ]
            mask[torch.tensor(blank).long()] = True
        if self._most is not None:
            for token in mask.nonzero().flatten().tolist():
                mask[token] = self.is_prefix(self.text + vocabulary.tokens[token])
        mask[sorted(vocabulary.ends)] = self.is_complete(self.text)
        return mask

    def write(self, text: bytes) -> None:
        whole = self.text + text
        interval = self._interval_of(whole)
        if not self._may_continue(whole, interval):
            raise not_allowed(text, self.text)
        self.text = whole
        self._interval = interval

    def fork(self) -> QuoteSession:
        return QuoteSession(
            self._passages,
            self._unit,
            self._least,
            self._most,
            self._vocabulary,
            self.text,
            self._interval,
            self._calls,
        )

    def _interval_of(self, text: bytes) -> Interval:
        index = self._passages.index
        written = self._vocabulary.visible(self.text)
        target = self._vocabulary.visible(text)
        if target.startswith(written):
            return index.extend(self._interval, target[len(written) :])
        return index.extend(index.everything, target)

    def _may_continue(self, text: bytes, interval: Interval) -> bool:
        """Whether ``text`` appears in the documents, and is within the limit with the unit that it has started."""
        if interval.low >= interval.high:
            return False
        if self._most is None:
            return True
        characters = whole_characters(self._vocabulary.visible(text))
        if characters is None:
            return False
        started, incomplete = characters
        counted = _count(started, self._unit)
        if self._unit == WORD:
            # After whitespace, only a further word can end the text. A character that is not complete may be
            # whitespace too.
            if started[-1:].isspace() or (incomplete and not started):
                counted += 1
            elif incomplete and counted == self._most:
                return not self._passages.always_ends(interval, len(incomplete))
        elif incomplete:
            counted += 1
        return counted <= self._most


def _count(text: str, unit: str) -> int:
    """The number of units in a text."""
    return len(text.split()) if unit == WORD else len(text)


def _options(constraint: _Verbatim) -> dict[str, Any]:
    return {
        "whitespace": constraint.whitespace,
        "unit": constraint.unit,
        "least": constraint.least,
        "most": constraint.most,
    }


def _text_of(name: str, value: Any) -> str:
    """The text of a document, or of its file."""
    if isinstance(value, os.PathLike):
        return read_text(name, Path(value))
    if not isinstance(value, str):
        raise ValueError(f"{name}={shortened(repr(value))} must be a text, or a pathlib.Path of a file")
    return value


def _documents_of(value: Any) -> tuple[tuple[str, str], ...]:
    """The documents with their names."""
    if isinstance(value, (str, os.PathLike)) or not isinstance(value, Iterable):
        raise ValueError(f"documents={shortened(repr(value))} must be a list or dict of documents; use Quote for one")
    if isinstance(value, Mapping):
        items = list(value.items())
    else:
        items = []
        for number, document in enumerate(value):
            if isinstance(document, tuple) and len(document) == 2:  # a name and a text
                items.append(document)
            else:
                items.append((os.fspath(document) if isinstance(document, os.PathLike) else str(number), document))
    if not items:
        raise ValueError("documents is empty; pass at least one document")
    return tuple((str(name), _text_of(f"documents[{name!r}]", document)) for name, document in items)


def files_in(path: Path) -> list[Path]:
    """The file itself, or all files in a folder, in order.

    Raises:
        ValueError: the folder is empty.
    """
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file())
    if not found:
        raise ValueError(f"the folder {str(path)!r} has no files; add documents to it")
    return found
