"""Knowledge from texts that failed: trees of prefixes, each with a bound of the probability to become a member."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from ..support.checks import whole_number
from .awrs import Span

MAX_PREFIXES = 100_000

_CURRENT: ContextVar[tuple[Lessons, ...]] = ContextVar("lessons", default=())


class Prefix:
    """A text as a sequence of tokens, in a tree.

    ``mass`` is an upper bound of the probability that the model continues the text to a member within the limit. It is
    ``rest``, the mass of the tokens that are not ruled out and have no prefix in the tree, plus ``chance · mass`` of
    those that have one. This is a sum of positive numbers, so bounds near 0 keep their digits.

    Attributes:
        parent: the text without its last token; None for the empty text.
        children: texts with one more token, by that token.
        chances: the probability of that token.
        rest: see above; None before the model was evaluated.
        mass: see above; 1 before the model was evaluated. It never grows.
        rejected: spans of :class:`textguide.smc.trie.Trie` that are ruled out, if the constraint has no mask.
        size: number of prefixes in this subtree.
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
        """Note that no continuation of this text is a member."""
        self._drop()
        self.update_mass()

    def follow(self, token: int) -> None:
        """Add the text with one more token to the tree."""
        self.children[token] = Prefix(self)
        self._grow(1)

    def update_mass(self) -> None:
        """Recompute the mass of this text and of its prefixes."""
        prefix: Prefix | None = self
        while prefix is not None and prefix.rest is not None:
            mass = prefix.rest + sum(prefix.chances[token] * child.mass for token, child in prefix.children.items())
            if mass >= prefix.mass:
                return
            prefix.mass = mass
            if mass == 0.0:
                prefix._drop()
            prefix = prefix.parent

    def _drop(self) -> None:
        """Remove the continuations of this text; a run that is still at one of them keeps it outside of the tree."""
        for child in self.children.values():
            child.parent = None
        self._grow(1 - self.size)
        self.children = {}
        self.chances = {}
        self.rest = 0.0

    def _grow(self, number: int) -> None:
        prefix: Prefix = self
        prefix.size += number
        while prefix.parent is not None:
            prefix = prefix.parent
            prefix.size += number
        if isinstance(prefix, Root) and prefix.lessons is not None:
            prefix.lessons.prefixes += number


class Root(Prefix):
    """The empty text.

    Attributes:
        lessons: the lessons that contain the tree and count its size; None after they have dropped it.
    """

    __slots__ = ("lessons",)

    def __init__(self, lessons: Lessons) -> None:
        super().__init__()
        self.lessons: Lessons | None = lessons
        lessons.prefixes += self.size

    def leave(self) -> None:
        """Remove the tree from its lessons."""
        if self.lessons is not None:
            self.lessons.prefixes -= self.size
            self.lessons = None


class Lessons:
    """What ``AWRS(sampler="cars")`` and ``"asap"`` learn from rejected prefixes, for all runs in a ``with`` block.

    Without one, the batches of a single call share what they learn. Runs with different prompts, models, guidances,
    constraints or settings share nothing. With the same seed, a second run in the block generates other texts than the
    first one, because it starts with what the first one learned.

    Args:
        max_prefixes: largest number of prefixes, over all prompts. The prompts that were used longest ago are dropped
            first. If a single prompt reaches the limit, further prefixes are not stored: that costs more tries, and the
            results are just as exact.

    Raises:
        ValueError: ``max_prefixes`` is not a whole number of 1 or more.

    Attributes:
        prefixes: number of prefixes that are stored.

    Example:
        >>> with textguide.Lessons():
        ...     for seed in range(10):
        ...         out = textguide.generate(model, tokenizer, prompt, AWRS(date, sampler="cars"), seed=seed)
    """

    def __init__(self, max_prefixes: int = MAX_PREFIXES) -> None:
        self.max_prefixes = whole_number("max_prefixes", max_prefixes, 1)
        self.prefixes = 0
        self.lock = threading.RLock()
        self._roots: OrderedDict[Hashable, Root] = OrderedDict()

    def __enter__(self) -> Lessons:
        _CURRENT.set((*_CURRENT.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        _CURRENT.set(_CURRENT.get()[:-1])

    def root(self, key: Hashable) -> Root:
        """The empty text of the tree for ``key``, shared by all runs with that key."""
        with self.lock:
            if key not in self._roots:
                while self._roots and self.prefixes >= self.max_prefixes:
                    self._roots.popitem(last=False)[1].leave()
                self._roots[key] = Root(self)
            self._roots.move_to_end(key)
            return self._roots[key]

    def bounds(self, prefix: Prefix) -> dict[int, float]:
        """The mass after each token about which something is known, by token."""
        with self.lock:
            return {token: child.mass for token, child in prefix.children.items()}

    def learn(self, prefix: Prefix, root: Root, probs: Tensor, allowed: Tensor, token: int | None) -> Prefix | None:
        """Note the probabilities of the model and the verdicts of the constraint after ``prefix``.

        Args:
            prefix: a text in the tree.
            root: the root of the tree.
            probs: the distribution of the next token (V,), float64.
            allowed: the tokens that are not ruled out, bool (V,).
            token: the token that was drawn; None if the text ends or was given up.

        Returns:
            The prefix with ``token``; None if there is no token or no room for it.
        """
        with self.lock:
            has_room = root.lessons is self and self.prefixes < self.max_prefixes
            if prefix.mass > 0.0 and token is not None and token not in prefix.children and has_room:
                prefix.follow(token)
            visited = list(prefix.children)
            mass = probs * allowed
            prefix.chances = dict(zip(visited, mass[visited].tolist(), strict=True))
            mass[visited] = 0.0
            prefix.rest = float(mass.sum())
            following = None if token is None else prefix.children.get(token)
            prefix.update_mass()
            return following


def merged(spans: Sequence[Span]) -> list[Span]:
    """The same positions in as few spans as possible, ascending."""
    disjoint: list[Span] = []
    for low, high in sorted(spans):
        if disjoint and low <= disjoint[-1][1]:
            disjoint[-1] = (disjoint[-1][0], max(high, disjoint[-1][1]))
        else:
            disjoint.append((low, high))
    return disjoint


@contextmanager
def lessons() -> Iterator[Lessons]:
    """The lessons of the enclosing ``with`` block, or new ones for this block if there is none."""
    if _CURRENT.get():
        yield current_lessons()
        return
    with Lessons() as own:
        yield own


def current_lessons() -> Lessons:
    """The lessons of the enclosing ``with`` block; new, unshared ones if there is none."""
    current = _CURRENT.get()
    return current[-1] if current else Lessons()
