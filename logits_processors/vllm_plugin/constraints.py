"""Constraints inside vLLM: adaptive weighted rejection sampling of one text a request, with its log-weight.

Patterns, schemas and grammars come with requests; whatever runs Python code is named when the engine starts. Knows no
vLLM.
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

from textguide.constraints import After, Constraint, Grammar, JSONSchema, Regex, Session, Vocabulary, from_dict, resolve
from textguide.constraints.after import REGEX
from textguide.guidance import AWRS
from textguide.smc.constrained import Constrained
from textguide.smc.starting import Anything
from textguide.support.importing import named_object

logger = logging.getLogger(__name__)

Critic = Callable[[str], float]
"""From a text to a log potential."""

ENGINE = "xgrammar"
"""What checks patterns, schemas and grammars: it comes with vLLM, which pins an llguidance that is too old for us."""
BACKTRACKING = "regex"
"""What checks patterns that no automaton takes. One may keep it busy for seconds while all other requests wait, so that
whoever starts the engine names them, and requests do not bring them."""

CONSTRAINT_ARGUMENTS = ("awrs_regex", "awrs_json_schema", "awrs_grammar", "awrs_constraint")
AWRS_ARGUMENTS = {
    "awrs_particles": "particles",
    "awrs_ess_threshold": "ess_threshold",
    "awrs_resampling": "resampling",
    "awrs_max_rejects": "max_rejects",
    "awrs_estimator": "estimator",
    "awrs_accepts": "accepts",
    "awrs_after": "after",
}
CRITIC = "awrs_critic"
"""The argument with the name of a critic; it may stand beside a guidance that is given as JSON."""
_TRAVELLERS: dict[Any, tuple[str, str]] = {
    Regex: ("awrs_regex", "pattern"),
    JSONSchema: ("awrs_json_schema", "schema"),
    Grammar: ("awrs_grammar", "grammar"),
}
NAMED = "named"
"""The key of a description that stands for a constraint of the engine."""


@lru_cache(maxsize=64)
def engines_constraint(name: str, text: str) -> Constraint:
    """A constraint that the engine was started with, made once a process.

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


def asked(extra: Mapping[str, Any], named: Mapping[str, str]) -> AWRS | None:
    """What a request asks for, its constraint as a description; None where it names no constraint.

    Args:
        extra: ``extra_args`` of a request.
        named: as from :func:`~.extras.constraints_of`.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.
    """
    given = [name for name in CONSTRAINT_ARGUMENTS if extra.get(name) is not None]
    options = {field: extra[name] for name, field in AWRS_ARGUMENTS.items() if extra.get(name) is not None}
    if not given:
        if extra.get(CRITIC) is not None:  # which weighs any text
            return _checked("awrs", None, options)
        if options:
            first = next(name for name in AWRS_ARGUMENTS if extra.get(name) is not None)
            raise ValueError(
                f"{first}={extra[first]!r} needs a constraint; give one of {', '.join(CONSTRAINT_ARGUMENTS)}"
            )
        return None
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} exclude each other; give one of them")
    name, value = given[0], extra[given[0]]
    if not isinstance(value, str):
        raise ValueError(f"{name}={_short(repr(value))} must be a text")
    try:
        description = _description(name, value, named)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith("awrs_") else f"{name}: {message}") from None
    return _checked(name, description, options)


def _checked(name: str, description: dict[str, Any] | None, options: Mapping[str, Any]) -> AWRS:
    try:
        return AWRS(description, **options)
    except (ValueError, TypeError) as error:
        message = str(error)
        for argument, field in AWRS_ARGUMENTS.items():
            message = message.replace(f"{field}=", f"{argument}=")
        raise ValueError(message if message.startswith("awrs_") else f"{name}: {message}") from None


def _description(name: str, value: str, named: Mapping[str, str]) -> dict[str, Any]:
    if name == "awrs_regex":
        try:
            return Regex(value, engine=ENGINE).to_dict()
        except ValueError as error:
            remedy = "name it when the engine starts: --constraint NAME=regex:PATTERN"
            raise ValueError(str(error).replace(f"engine={BACKTRACKING!r} takes it", remedy)) from None
    if name == "awrs_json_schema":
        try:
            schema = json.loads(value)  # a text that is no JSON would be read as the path of a file
        except ValueError as error:
            raise ValueError(f"awrs_json_schema={_short(value)!r} is no JSON ({error})") from None
        return JSONSchema(schema, engine=ENGINE).to_dict()
    if name == "awrs_grammar":
        return Grammar(f"{value}\n", engine=ENGINE).to_dict()  # with a newline it is no path either
    if value not in named:
        known = f"those are {', '.join(sorted(named))}" if named else "it was started with none"
        raise ValueError(f"awrs_constraint={_short(value)!r} is no constraint of this engine; {known}")
    return {NAMED: value}


@lru_cache(maxsize=64)
def engines_critic(name: str, path: str) -> Critic:
    """A critic that the engine was started with, found once a process.

    Raises:
        ValueError: there is none at its place; the message names it.
    """
    kind, _, place = path.partition(":")
    if kind != "python":
        raise ValueError(f"critic {name}={path!r} must be python:MODULE:NAME")
    critic = named_object(place, f"critic {name}")
    if not callable(critic):
        raise ValueError(f"critic {name}={path!r} must be a function from a text to a log potential")
    return critic


def constraint_for(description: Mapping[str, Any] | None, named: Mapping[str, str]) -> Constraint:
    """The constraint that :func:`asked` described; every text where it is None."""
    if description is None:
        return Anything()
    if NAMED in description:
        name = description[NAMED]
        return engines_constraint(name, named[name])
    return from_dict(dict(description))


_DEFAULTS = {"engine": ENGINE, "whitespace": "flexible", "lenient": False, "longest_string": None}
_KINDS = {kind.kind: names for kind, names in _TRAVELLERS.items()}
_LINES = {"regex": "awrs_regex", "json-schema": "awrs_json_schema", "grammar": "awrs_grammar"}


def requested(guidance: AWRS) -> dict[str, Any]:
    """The short arguments that say what ``guidance``, which came with a request, says.

    Raises:
        ValueError: it asks for what no request can; the message says what.
    """
    _check_drawn(guidance)
    given = {name: getattr(guidance, field) for name, field in AWRS_ARGUMENTS.items()}
    values = {name: value for name, value in given.items() if value is not None}
    constraint = guidance.constraint
    if constraint is None:  # a critic weighs every text
        return values
    if isinstance(constraint, Mapping):
        fields = dict(constraint)
        if set(fields) == {NAMED}:
            return {**values, "awrs_constraint": fields[NAMED]}
        name, field = _KINDS.get(str(fields.pop("kind", None)), ("", ""))
        text, options = fields.pop(field, None), dict(_DEFAULTS)
        if name == "awrs_json_schema" and not isinstance(text, str):
            text = json.dumps(text)
        if name and isinstance(text, str) and all(key in options and options[key] == fields[key] for key in fields):
            return {**values, name: text}
    elif isinstance(constraint, str):
        kind, _, rest = constraint.partition(":")
        is_path = (kind == "json-schema" and rest.lstrip()[:1] != "{") or (kind == "grammar" and "\n" not in rest)
        if kind in _LINES and not is_path:
            return {**values, _LINES[kind]: rest}
    raise ValueError(
        f"constraint={_short(repr(constraint))} does not travel with a request; give a line such as 'regex:[0-9]+', "
        f"an object with the kind {', '.join(_KINDS)} and the engine {ENGINE!r}, or {{{NAMED!r}: NAME}} for one that "
        "the engine was started with"
    )


def _check_drawn(guidance: AWRS) -> None:
    if guidance.sampler != "awrs":
        raise ValueError(
            f"guidance={guidance!r}: requests draw their tokens once; give AWRS(constraint, particles=…) with "
            "sampler='awrs', structured_outputs, which are vLLM's own masks, or textguide.generate for "
            f"sampler={guidance.sampler!r}"
        )
    if guidance.lookahead not in (None, "auto"):
        raise ValueError(
            f"lookahead={guidance.lookahead!r} is not known inside vLLM, where no text is foreseen; leave it "
            "out, or use textguide.generate"
        )


def travelling(guidance: AWRS, named: Mapping[str, str]) -> dict[str, Any]:
    """``guidance`` as the JSON that a request carries.

    Args:
        guidance: what is asked for; its critic travels by itself, as :func:`critic_name`.
        named: as from :func:`~.extras.constraints_of`.

    Raises:
        ValueError: it asks for what no request can; the message says what.
    """
    _check_drawn(guidance)
    if callable(guidance.after):
        raise ValueError(f"after={guidance.after!r} is a function, and does not travel with a request; give a text")
    options = {field: getattr(guidance, field) for field in AWRS_ARGUMENTS.values()}
    if guidance.constraint is None:
        return {"method": guidance.name, **options}
    constraint = resolve(guidance.constraint, engine=ENGINE)
    if isinstance(constraint, Regex):  # which has an engine of its own where nobody asked for one
        constraint = constraint.on(ENGINE)
    for name, text in named.items():
        if engines_constraint(name, text) == constraint:
            return {"method": guidance.name, "constraint": {NAMED: name}, **options}
    for kind, (_, field) in _TRAVELLERS.items():
        if isinstance(constraint, kind) and constraint.engine == ENGINE:
            text = getattr(constraint, field)
            if constraint == kind(text, engine=ENGINE):
                description = {"kind": kind.kind, field: text, "engine": ENGINE}
                return {"method": guidance.name, "constraint": description, **options}
    raise ValueError(
        f"constraint={constraint!r} does not travel with a request; give a line such as 'regex:[0-9]+', a Regex, "
        f"JSONSchema or Grammar with engine={ENGINE!r}, or one that the engine was started with: "
        "textguide.vllm_engine(model, constraints={'NAME': 'python:MODULE:NAME'})"
    )


def critic_name(guidance: AWRS, critics: Mapping[str, str]) -> str | None:
    """The name under which the engine has the critic of ``guidance``; None where there is no critic.

    Args:
        critics: as from :func:`~.extras.critics_of`.

    Raises:
        ValueError: the engine has not; the message says what it has.
    """
    if guidance.critic is None:
        return None
    for name, path in critics.items():
        if engines_critic(name, path) is guidance.critic:
            return name
    raise ValueError(
        f"critic={guidance.critic!r} does not travel with a request; name it when the engine starts: "
        "textguide.vllm_engine(model, critics={'NAME': 'python:MODULE:NAME'})"
    )


class EngineConstraints:
    """Makes the constraints of one engine's requests.

    Args:
        named: as from :func:`~.extras.constraints_of`.
        tokenizer: gives that of the language model.
        size: its number of tokens.
        critics: as from :func:`~.extras.critics_of`.
    """

    def __init__(
        self,
        named: Mapping[str, str],
        tokenizer: Callable[[], Any],
        size: int,
        critics: Mapping[str, str] | None = None,
    ) -> None:
        self.named, self.critics = dict(named), dict(critics or {})
        self._tokenizer, self._size = tokenizer, size

    def critic(self, name: str | None) -> Critic | None:
        """The critic called ``name``.

        Raises:
            ValueError: the engine has none of that name.
        """
        if name is None:
            return None
        if name not in self.critics:
            known = f"those are {', '.join(sorted(self.critics))}" if self.critics else "it was started with none"
            raise ValueError(f"{CRITIC}={_short(repr(name))} is no critic of this engine; {known}")
        return engines_critic(name, self.critics[name])

    def load(self) -> None:
        """Load the engine's constraints and critics, so that one that cannot be loaded is refused at start."""
        for name, text in self.named.items():
            engines_constraint(name, text)
        for name, path in self.critics.items():
            engines_critic(name, path)

    def start(self, guidance: AWRS, ends: Iterable[int]) -> tuple[Session, Vocabulary]:
        """A session in front of the first token, compiled where it has not been.

        Raises:
            ValueError: nothing satisfies the constraint, its engine refuses it, or the tokenizer cannot be understood.
        """
        vocabulary = Vocabulary.of(self._tokenizer(), self._size, sorted(ends))
        constraint = constraint_for(guidance.constraint, self.named)
        if guidance.after is not None:
            if not isinstance(guidance.after, str) or guidance.after.startswith(REGEX):
                raise ValueError(f"awrs_after={_short(repr(guidance.after))} must be a text here, such as '</think>'")
            constraint = After(guidance.after, constraint)
        return constraint.start(vocabulary), vocabulary

    def row(self, guidance: AWRS, ends: Iterable[int], limit: int) -> ConstrainedRow:
        """The constraint of a request that begins.

        Args:
            guidance: as from :func:`asked`.
            ends: tokens that end a text.
            limit: most tokens of the text.
        """
        try:
            return ConstrainedRow(guidance, *self.start(guidance, ends), limit)
        except ValueError as error:  # it was compiled where the request came in, but a worker must never fall
            logger.exception("a constraint cannot be used")
            return ConstrainedRow(guidance, None, Vocabulary((b"",) * self._size, frozenset(ends)), limit, str(error))


@dataclass(frozen=True)
class Drawn:
    """One token under a constraint.

    Args:
        token: what to write; an end token where nothing may be written.
        log_weight: the log of the factor that the token multiplies the weight of its text by; None for weight 0.
        calls: questions to the constraint.
        ended: whether the text is complete with it.
        death: why nothing may be written; None where something may.
    """

    token: int
    log_weight: float | None
    calls: int
    ended: bool
    death: str | None = None


class ConstrainedRow:
    """The constraint's view of one request, which grows with its text.

    Args:
        guidance: one particle.
        session: in front of the first token; it is forked, never moved.
        vocabulary: of the model, with the tokens that end texts.
        limit: most tokens of the text; at the last one it has to end.
        death: why nothing may be written at all.
    """

    def __init__(
        self, guidance: AWRS, session: Session | None, vocabulary: Vocabulary, limit: int, death: str | None = None
    ) -> None:
        self.guidance = replace(guidance, particles=1)
        self.session, self.vocabulary, self.limit, self.death = session, vocabulary, limit, death
        self.end = min(vocabulary.ends, default=0)
        self._rows: Constrained | None = None
        self._read: list[int] | None = None  # written when the last token was drawn

    def __call__(self, scores: Tensor, written: list[int], generator: torch.Generator) -> Drawn:
        """The token behind ``written`` from processed scores (1, V).

        It depends on these and on the generator's state alone: a token that was thrown away is drawn again.
        """
        if self.session is None:
            return Drawn(self.end, None, 0, False, self.death)
        try:
            return self._draw(self.session, scores, written, generator)
        except (
            Exception
        ) as error:  # a function that the engine was started with failed: the text ends, and the engine goes on
            logger.exception("a constraint failed")
            self._read = None
            return Drawn(self.end, None, 0, False, f"the constraint failed: {type(error).__name__}: {error}")

    def _draw(self, session: Session, scores: Tensor, written: list[int], generator: torch.Generator) -> Drawn:
        rows = self._behind(session, written, generator)
        asked, last = session.calls, len(written) >= self.limit - 1
        rows.log_weights.zero_()
        token = int(rows.choose(scores, last))
        calls = session.calls - asked
        if not rows.open[0]:
            self._read = None
            return Drawn(self.end, None, calls, False, rows.outcome().deaths[0])
        return Drawn(token, float(rows.log_weights[0]), calls, token in self.vocabulary.ends)

    def _behind(self, session: Session, written: list[int], generator: torch.Generator) -> Constrained:
        """Rows that have read ``written``."""
        rows, read = self._rows, self._read
        if rows is None or read is None or len(written) != len(read) + 1 or written[:-1] != read:
            read = []
            rows = Constrained(self.guidance, session, self.vocabulary, 1, generator, generator.device)
        for token in written[len(read) :]:
            rows.advance(torch.tensor([token]), False)
        self._rows, self._read = rows, list(written)
        return rows


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
