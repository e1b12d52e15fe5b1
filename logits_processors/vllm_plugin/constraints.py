"""Constraints inside vLLM: those that an engine was started with, and adaptive weighted rejection sampling of a text.

Knows no vLLM.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from textguide.constraints import After, Constraint, Session, Vocabulary, from_dict, resolve
from textguide.constraints.triggers import REGEX
from textguide.guidance import AWRS
from textguide.smc.constrained import Constrained
from textguide.smc.starting import Anything
from textguide.support.checks import brief
from textguide.support.importing import named_object

logger = logging.getLogger(__name__)

Critic = Callable[[str], float]
"""From a text to a log potential."""

ENGINE = "xgrammar"
"""What checks patterns, schemas and grammars. It comes with vLLM, which pins an llguidance that is too old for us."""
BACKTRACKING = "regex"
"""What checks patterns that no automaton can. One may take seconds while all other requests wait, so such patterns are
named when the engine starts, and requests cannot bring them."""
NAMED = "named"
"""The key of a description that is the name of a constraint of the engine."""
CRITIC = "awrs_critic"
"""The argument with the name of a critic."""


@lru_cache(maxsize=64)
def engine_constraint(name: str, text: str) -> Constraint:
    """A constraint that the engine was started with, made once per process.

    Raises:
        ValueError: it cannot be used; the message names it.
    """
    try:
        return resolve(text, engine=ENGINE)
    except (ValueError, OSError) as error:
        if text.startswith("regex:"):
            with suppress(ValueError):
                return resolve(text, engine=BACKTRACKING)
        raise ValueError(f"constraint {name}={text!r}: {error}") from None


@lru_cache(maxsize=64)
def engine_critic(name: str, path: str) -> Critic:
    """A critic that the engine was started with, imported once per process.

    Raises:
        ValueError: it cannot be imported; the message names it.
    """
    kind, _, place = path.partition(":")
    if kind != "python":
        raise ValueError(f"critic {name}={path!r} must be python:MODULE:NAME")
    critic = named_object(place, f"critic {name}")
    if not callable(critic):
        raise ValueError(f"critic {name}={path!r} must be a function from a text to a log potential")
    return critic


def constraint_for(description: Mapping[str, Any] | None, named: Mapping[str, str]) -> Constraint:
    """The constraint of a request.

    Args:
        description: as :func:`~.constraint_arguments.awrs_of` makes it; None allows every text.
        named: as :func:`~.extras.constraints_of` returns them.
    """
    if description is None:
        return Anything()
    if NAMED in description:
        name = description[NAMED]
        return engine_constraint(name, named[name])
    return _described(json.dumps(description))


@lru_cache(maxsize=32)
def _described(text: str) -> Constraint:
    return from_dict(json.loads(text))


def constraint_of(guidance: AWRS, named: Mapping[str, str]) -> Constraint:
    """The constraint of a guidance, after its free text if it has one.

    Args:
        guidance: as :func:`~.constraint_arguments.awrs_of` returns it.
        named: as :func:`~.extras.constraints_of` returns them.

    Raises:
        ValueError: it cannot be used.
    """
    check_after(guidance)
    constraint = constraint_for(guidance.constraint, named)
    return constraint if guidance.after is None else After(guidance.after, constraint)


def check_after(guidance: AWRS) -> None:
    """Refuse free text that ends in another way than with a text."""
    if guidance.after is not None and (not isinstance(guidance.after, str) or guidance.after.startswith(REGEX)):
        raise ValueError(f"awrs_after={brief(guidance.after)} must be a text here, such as '</think>'")


class EngineConstraints:
    """Makes the constraints of one engine's requests.

    Args:
        named: as :func:`~.extras.constraints_of` returns them.
        tokenizer: returns that of the language model.
        size: its number of tokens.
        critics: as :func:`~.extras.critics_of` returns them.
    """

    def __init__(
        self,
        named: Mapping[str, str],
        tokenizer: Callable[[], Any],
        size: int,
        critics: Mapping[str, str] | None = None,
    ) -> None:
        self.named = dict(named)
        self.critics = dict(critics or {})
        self._tokenizer = tokenizer
        self._size = size

    def critic(self, name: str | None) -> Critic | None:
        """The critic called ``name``.

        Raises:
            ValueError: the engine has none of that name.
        """
        if name is None:
            return None
        if name not in self.critics:
            known = f"those are {', '.join(sorted(self.critics))}" if self.critics else "it was started with none"
            raise ValueError(f"{CRITIC}={brief(name)} is not a critic of this engine; {known}")
        return engine_critic(name, self.critics[name])

    def load(self) -> None:
        """Load the engine's constraints and critics, so that one that cannot be loaded is refused at start."""
        for name, text in self.named.items():
            engine_constraint(name, text)
        for name, path in self.critics.items():
            engine_critic(name, path)

    def start(self, guidance: AWRS, ends: Iterable[int]) -> tuple[Session, Vocabulary]:
        """A session before the first token, compiled if it was not yet, and the vocabulary.

        Raises:
            ValueError: nothing satisfies the constraint, its engine refuses it, or the tokenizer cannot be understood.
        """
        constraint = constraint_of(guidance, self.named)
        vocabulary = constraint.vocabulary(Vocabulary.of(self._tokenizer(), self._size, sorted(ends)))
        return constraint.start(vocabulary), vocabulary

    def row(self, guidance: AWRS, ends: Iterable[int], limit: int) -> ConstrainedRow:
        """The constraint of a request that begins.

        Args:
            guidance: as :func:`~.constraint_arguments.awrs_of` returns it.
            ends: tokens that end a text.
            limit: most tokens of the text.
        """
        try:
            return ConstrainedRow(guidance, *self.start(guidance, ends), limit)
        except ValueError as error:
            # The front end compiled it, so this should not happen. But an exception here would end the engine.
            logger.exception("a constraint cannot be used")
            return ConstrainedRow(guidance, None, Vocabulary((b"",) * self._size, frozenset(ends)), limit, str(error))


@dataclass(frozen=True)
class Drawn:
    """One token under a constraint.

    Args:
        token: the token to write; an end token if nothing may be written.
        log_weight: the log of the factor that the token multiplies the weight of its text by; None for weight 0.
        calls: how often the constraint was evaluated.
        ended: whether the text is complete with it.
        death: why nothing may be written; None if something may.
    """

    token: int
    log_weight: float | None
    calls: int
    ended: bool
    death: str | None = None


class ConstrainedRow:
    """The constraint of one request, which follows its text.

    Args:
        guidance: one particle.
        session: before the first token; it is forked and never advanced.
        vocabulary: of the model, with the tokens that end texts.
        limit: most tokens of the text; at the last one it has to end.
        death: why nothing may be written at all.
    """

    def __init__(
        self, guidance: AWRS, session: Session | None, vocabulary: Vocabulary, limit: int, death: str | None = None
    ) -> None:
        self.guidance = replace(guidance, particles=1)
        self.session = session
        self.vocabulary = vocabulary
        self.limit = limit
        self.death = death
        self.end = min(vocabulary.ends, default=0)
        self._rows: Constrained | None = None
        self._read: list[int] | None = None  # the text when the last token was drawn

    def __call__(self, scores: Tensor, written: list[int], generator: torch.Generator) -> Drawn:
        """Draw the token after ``written`` from processed scores (1, V).

        It only depends on these and on the generator's state, so a token that was discarded is drawn again.
        """
        if self.session is None:
            return Drawn(self.end, None, 0, False, self.death)
        try:
            return self._draw(self.session, scores, written, generator)
        except Exception as error:
            # A function that the engine was started with failed. The text ends, and the engine continues.
            logger.exception("a constraint failed")
            self._read = None
            return Drawn(self.end, None, 0, False, f"the constraint failed: {type(error).__name__}: {error}")

    def _draw(self, session: Session, scores: Tensor, written: list[int], generator: torch.Generator) -> Drawn:
        rows = self._after(session, written, generator)
        calls_before = session.calls
        is_last = len(written) >= self.limit - 1
        rows.log_weights.zero_()
        token = int(rows.choose(scores, is_last))
        calls = session.calls - calls_before
        if not rows.open[0]:
            self._read = None
            return Drawn(self.end, None, calls, False, rows.outcome().deaths[0])
        return Drawn(token, float(rows.log_weights[0]), calls, token in self.vocabulary.ends)

    def _after(self, session: Session, written: list[int], generator: torch.Generator) -> Constrained:
        """Rows that have read ``written``."""
        rows = self._rows
        read = self._read
        # A text that does not continue the last one by a token is read from the start: its token was discarded, or it
        # was preempted.
        if rows is None or read is None or len(written) != len(read) + 1 or written[:-1] != read:
            read = []
            rows = Constrained(self.guidance, session, self.vocabulary, 1, generator, generator.device)
        for token in written[len(read) :]:
            rows.advance(torch.tensor([token]), False)
        self._rows = rows
        self._read = list(written)
        return rows
