"""What texts that failed taught: trees of prefixes, each with the probability that a text can still become a member."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from .awrs import Span

MAX_PREFIXES = 100_000

_CURRENT: ContextVar[tuple[Lessons, ...]] = ContextVar("lessons", default=())


class Prefix:
    """One text that was written by tokens, in a tree.

    ``mass`` is an upper bound of the probability that what the model writes behind it becomes a member in time. It is
    ``rest``, the mass of the tokens that are not known to be ruled out and have no prefix of their own here, plus
    ``chance · mass`` of those that have one: a sum of positive numbers, so that bounds near 0 keep their digits.

    Attributes:
        parent: the text without its last token; None in front of the first one.
        children: texts with one token more, by that token.
        chances: the probability of that token.
        rest: see above; None before the model was asked.
        mass: see above; 1 before the model was asked. It never grows.
        rejected: spans of :class:`textguide.smc.trie.Trie` that are known to be ruled out, where no mask is known.
        size: texts that are kept of it and behind it.
    """

    __slots__ = ("chances", "children", "mass", "parent", "rejected", "rest", "size")

    def __init__(self, parent: Prefix | None = None) -> None:
        self.parent = parent
        self.children: dict[int, Prefix] = {}
        self.chances: dict[int, float] = {}
        self.rest: float | None = None
        self.mass = 1.0
        self.rejected: list[Span] = []
        self.size = 1

    def close(self) -> None:
        """Nothing behind this text is a member."""
        self._drop()
        self.settle()

    def follow(self, token: int) -> None:
        """Keep the text with one token more."""
        self.children[token] = Prefix(self)
        self._grow(1)

    def settle(self) -> None:
        """Sum the mass of this text anew, and of all texts that it begins with."""
        place: Prefix | None = self
        while place is not None and place.rest is not None:
            mass = place.rest + sum(place.chances[token] * child.mass for token, child in place.children.items())
            if mass >= place.mass:
                return
            place.mass = mass
            if mass == 0.0:
                place._drop()
            place = place.parent

    def _drop(self) -> None:
        """Forget the texts behind this one; those that a run still stands at are no part of the tree."""
        for child in self.children.values():
            child.parent = None
        self._grow(1 - self.size)
        self.children, self.chances, self.rest = {}, {}, 0.0

    def _grow(self, number: int) -> None:
        place: Prefix = self
        place.size += number
        while place.parent is not None:
            place = place.parent
            place.size += number
        if isinstance(place, Root) and place.lessons is not None:
            place.lessons.prefixes += number


class Root(Prefix):
    """The text in front of the first token.

    Attributes:
        lessons: those that keep it and count its size; None once they have dropped it.
    """

    __slots__ = ("lessons",)

    def __init__(self, lessons: Lessons) -> None:
        super().__init__()
        self.lessons: Lessons | None = lessons
        lessons.prefixes += self.size

    def leave(self) -> None:
        """Be kept no longer."""
        if self.lessons is not None:
            self.lessons.prefixes -= self.size
            self.lessons = None


class Lessons:
    """What rejected prefixes taught ``AWRS(sampler="cars")`` and ``"asap"``, for all runs inside a ``with`` block.

    Without one, what is learned serves the batches of one call. Prompts, models, guidances, constraints and settings
    that differ never share anything. Under one seed a second run within the block writes other texts than the first,
    since it begins with what that one learned.

    Args:
        max_prefixes: texts that are kept, over all prompts. Of the prompts that were used longest ago all are dropped
            first; where one prompt alone fills the room, further prefixes are not kept: more tries, and as exact.

    Raises:
        ValueError: ``max_prefixes`` is no whole number of 1 or more.

    Attributes:
        prefixes: texts that are kept.

    Example:
        >>> with textguide.Lessons():
        ...     for seed in range(10):
        ...         out = textguide.generate(model, tokenizer, prompt, AWRS(date, sampler="cars"), seed=seed)
    """

    def __init__(self, max_prefixes: int = MAX_PREFIXES) -> None:
        if isinstance(max_prefixes, bool) or not isinstance(max_prefixes, int) or max_prefixes < 1:
            raise ValueError(f"max_prefixes={max_prefixes!r} must be a whole number of 1 or more")
        self.max_prefixes, self.prefixes = max_prefixes, 0
        self.lock = threading.RLock()
        self._roots: OrderedDict[Hashable, Root] = OrderedDict()

    def __enter__(self) -> Lessons:
        _CURRENT.set((*_CURRENT.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        _CURRENT.set(_CURRENT.get()[:-1])

    def root(self, key: Hashable) -> Root:
        """The place in front of the first token, for all runs with one ``key``."""
        with self.lock:
            if key not in self._roots:
                while self._roots and self.prefixes >= self.max_prefixes:
                    self._roots.popitem(last=False)[1].leave()
                self._roots[key] = Root(self)
            self._roots.move_to_end(key)
            return self._roots[key]

    def bounds(self, place: Prefix) -> tuple[list[int], list[float]]:
        """Tokens behind which something is known, and the mass there."""
        with self.lock:
            return list(place.children), [child.mass for child in place.children.values()]

    def learn(self, place: Prefix, root: Root, probs: Tensor, allowed: Tensor, token: int | None) -> Prefix | None:
        """Note what the model and the constraint say behind ``place``.

        Args:
            root: of its tree.
            probs: of the next token (V,), float64.
            allowed: those that are not known to be ruled out, bool (V,).
            token: the one that was drawn and does not end the text; None where there is none.

        Returns:
            The place behind ``token``, None where there is none or no room for it.
        """
        with self.lock:
            room = root.lessons is self and self.prefixes < self.max_prefixes
            if place.mass > 0.0 and token is not None and token not in place.children and room:
                place.follow(token)
            visited = list(place.children)
            kept = probs * allowed
            place.chances = dict(zip(visited, kept[visited].tolist(), strict=True))
            kept[visited] = 0.0
            place.rest = float(kept.sum())
            behind = None if token is None else place.children.get(token)
            place.settle()
            return behind


def merged(spans: Sequence[Span]) -> list[Span]:
    """The same positions in as few spans as can be, ascending."""
    found: list[Span] = []
    for low, high in sorted(spans):
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found


@contextmanager
def lessons() -> Iterator[Lessons]:
    """Those of the ``with`` block that this runs in; new ones where there is none."""
    if _CURRENT.get():
        yield current_lessons()
        return
    with Lessons() as own:
        yield own


def current_lessons() -> Lessons:
    """Those of the ``with`` block that this runs in; new ones, which nothing else sees, where there is none."""
    current = _CURRENT.get()
    return current[-1] if current else Lessons()
