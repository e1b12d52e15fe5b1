"""From the JSON of a request to checked values. No request may name a file, a folder or code of the server."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..constraints import Regex
from ..constraints.engines import DEFAULT
from ..constraints.patterns import BACKTRACKING
from ..forward.steering_vectors import BUNDLED
from ..guidance import Guidance, TokenReweighting, as_guidance, priors, split
from ..guidance.canvas_guidance import CanvasGuidance
from ..guidance.places import check_place
from ..support.checks import is_whole_number
from .errors import RefusedError
from .limits import Limits
from .method_schema import loading_fields
from .requests import TEXT_OPTIONS, TextRequest
from .schema import RequestField, brief, read_fields, refuse_unknown

CLASSIFIERS = ("sentiment", "sentiment-minilm", "sentiment-smollm2", "profanity")
"""Classifiers that come with textguide or with one of its extras."""
CONSTRAINT_KINDS = ("regex", "json-schema", "grammar", "any-of", "all-of", "not")
"""Constraints that consist of text."""
ROLES = ("system", "user", "assistant")
LARGEST_COMPOSITION = 8


@dataclass(frozen=True)
class Rules:
    """What requests may ask for.

    Args:
        limits: how much.
        named: names of classifiers, rewards, value heads, vectors and constraints that the server was started with.
    """

    limits: Limits = field(default_factory=Limits)
    named: Collection[str] = ()

    def text_request(self, values: Mapping[str, Any], place: str = "generate") -> TextRequest:
        """A request for text.

        Args:
            values: JSON with ``prompt``, ``guidance``, ``options`` and ``forced``.
            place: where the guidance is to run; see :mod:`textguide.guidance.places`.

        Raises:
            RefusedError: something in it is malformed, beyond the limits, or not allowed.
        """
        refuse_unknown(values, ("prompt", "guidance", "options", "forced"))
        options = self.options(values.get("options") or {})
        return TextRequest(
            prompt=self.prompt(values.get("prompt")),
            guidance=self.guidance(values.get("guidance"), place),
            options=options,
            forced=self.forced(values.get("forced") or [], options["max_new_tokens"]),
        )

    def text(self, value: Any, name: str) -> str:
        """A text that is not too long."""
        if not isinstance(value, str):
            raise RefusedError(f"{name}={brief(value)} must be a text")
        if len(value) > self.limits.characters:
            raise RefusedError(
                f"{name} has {len(value):,} characters, and this server takes {self.limits.characters:,}; shorten it"
            )
        return value

    def prompt(self, value: Any) -> Any:
        """A text, or a chat of texts."""
        if not isinstance(value, list):
            if value == "":
                raise RefusedError("the prompt is empty; write something that is to be continued")
            return self.text(value, "prompt")
        if not value:
            raise RefusedError("the chat is empty; write a message")
        for number, turn in enumerate(value):
            if not isinstance(turn, Mapping) or turn.get("role") not in ROLES or set(turn) != {"role", "content"}:
                raise RefusedError(f"message {number + 1} must have a role ({', '.join(ROLES)}) and a content")
            self.text(turn["content"], f"message {number + 1}")
        if sum(len(turn["content"]) for turn in value) > self.limits.characters:
            raise RefusedError(f"the chat is longer than {self.limits.characters:,} characters; shorten it")
        return [dict(turn) for turn in value]

    def options(self, values: Any) -> dict[str, Any]:
        """Options of :func:`textguide.generate`; always with ``max_new_tokens``."""
        options = read_fields(values, TEXT_OPTIONS, self.limits, "options")
        options.setdefault("max_new_tokens", min(48, self.limits.new_tokens))
        if options.get("temperature") == 0:
            del options["temperature"]  # generate draws nothing without it
        return options

    def canvas_options(self, values: Any, schema: Mapping[str, RequestField]) -> dict[str, Any]:
        """Options of a canvas, with the fields in ``schema``."""
        options = read_fields(values, schema, self.limits, "options")
        if "constraint" in options:
            self.constraint(options["constraint"])
        return options

    def forced(self, values: Any, new: int) -> tuple[int, ...]:
        """Token ids that a text of ``new`` tokens starts with."""
        if not isinstance(values, list) or not all(is_whole_number(one) and one >= 0 for one in values):
            raise RefusedError(f"forced={brief(values)} must be a list of token ids")
        if len(values) > new:
            raise RefusedError(f"forced has {len(values)} tokens, and max_new_tokens={new}; raise it")
        return tuple(values)

    def guidance(self, value: Any, place: str = "generate") -> Guidance | None:
        """A guidance from an object with a method and its fields, or from a list of these that act together.

        Raises:
            RefusedError: it is malformed, names something of the server's machine, is too expensive, or does not run
                there.
        """
        if value is None:
            return None
        parts = value if isinstance(value, list) else [value]
        if len(parts) > LARGEST_COMPOSITION:
            raise RefusedError(f"{len(parts)} guidances were given; compose eight at most")
        for part in parts:
            self._check_part(part)
        try:
            guidance = as_guidance(parts) if parts else None
            check_place(guidance, place)
        except RefusedError:
            raise
        except TypeError as error:
            raise RefusedError(f"guidance lacks a field: {error}") from None
        except ValueError as error:
            raise RefusedError(str(error)) from None
        except Exception as error:  # a value of a type that the method does not check
            raise RefusedError(f"guidance={brief(value)} has a value that does not fit: {error}") from None
        self._check_cost(guidance)
        return guidance

    def constraint(self, value: Any, name: str = "constraint") -> None:
        """Refuse a constraint that reads a file or names code.

        Raises:
            RefusedError: it does, or it is not a constraint.
        """
        if isinstance(value, str):
            self._check_constraint_text(value, name)
            return
        if not isinstance(value, Mapping) or value.get("kind") not in CONSTRAINT_KINDS:
            raise RefusedError(f"{name}={brief(value)} must be an object with a kind: {', '.join(CONSTRAINT_KINDS)}")
        if value["kind"] == "regex":
            if value.get("engine") == BACKTRACKING:
                raise RefusedError(f"engine={BACKTRACKING!r} may take any time, and hold up others; leave it out")
            self._check_pattern(value.get("pattern"))
        elif value["kind"] == "json-schema":
            schema = value.get("schema")
            if not isinstance(schema, (Mapping, bool)):
                raise RefusedError(f"schema={brief(schema)} must be a JSON object; this server reads no files")
            self._check_schema(schema)
        elif value["kind"] == "grammar":
            self._check_grammar(value.get("grammar"))
        inner = value.get("constraints", [value["constraint"]] if "constraint" in value else [])
        if not isinstance(inner, list):
            raise RefusedError(f"constraints={brief(inner)} must be a list")
        for one in inner:
            self.constraint(one, name)

    def _check_constraint_text(self, value: str, name: str) -> None:
        kind, _, rest = value.partition(":")
        if kind == "regex" and value not in self.named:
            self._check_pattern(rest)
        elif value not in self.named:
            raise RefusedError(
                f"{name}={brief(value)}: write regex:PATTERN, or an object with a kind "
                f"({', '.join(CONSTRAINT_KINDS)}); this page reads no files"
            )

    def _check_pattern(self, pattern: Any) -> None:
        """Refuse patterns that no automaton accepts: matching them by backtracking may take any time, and other
        clients wait."""
        try:
            Regex(self.text(pattern, "pattern"), engine=DEFAULT)
        except RefusedError:
            raise
        except ValueError as error:
            remedy = "name it when the server is started: --allow regex:PATTERN"
            raise RefusedError(str(error).replace(f"engine={BACKTRACKING!r} takes it", remedy)) from None

    def _check_schema(self, schema: Any) -> None:
        """Refuse a schema that is too large."""
        try:
            size = len(json.dumps(schema))
        except RecursionError:
            raise RefusedError("schema is nested too deeply; simplify it") from None
        if size > self.limits.constraint_bytes:
            raise RefusedError(
                f"schema has {size:,} bytes, and this server takes {self.limits.constraint_bytes:,}; shorten it"
            )

    def _check_grammar(self, value: Any) -> None:
        """Refuse what a grammar object would read as the name of a file."""
        text = self.text(value, "grammar")
        if "\n" not in text and "start" not in text:
            raise RefusedError(f"grammar={brief(text)} has no rule start; this server reads no files")
        if text.strip().endswith(".lark") and "\n" not in text.strip():
            raise RefusedError(f"grammar={brief(text)} names a file; this server reads no files")

    def _check_part(self, part: Any) -> None:
        """Refuse what a guidance may not name, before an object is built from it."""
        if not isinstance(part, Mapping) or not isinstance(part.get("method"), str):
            raise RefusedError(f"guidance={brief(part)} must be an object with a method and its fields")
        if part["method"] == "composed":
            parts = part.get("parts")
            if not isinstance(parts, list):
                raise RefusedError("composed has no list of parts; give one")
            for one in parts:
                self._check_part(one)
            return
        for name, value in part.items():
            self._check_field(part["method"], name, value)

    def _check_field(self, method: str, name: str, value: Any) -> None:
        for text in _texts(value):
            self.text(text, name)
        if value is None:
            return
        if name in ("classifier", "predictor"):
            self._check_classifier(value, name)
        elif name == "vector":
            known = isinstance(value, str) and (value in BUNDLED or value in self.named)
            if not known and not isinstance(value, list):
                raise RefusedError(self._not_offered(name, value, BUNDLED))
        elif name == "prior":
            self._check_prior(value)
        elif name == "constraint":
            self.constraint(value)
        elif name == "critic":
            raise RefusedError("critic is a function, which no page can send; leave it out")
        elif (method, name) in loading_fields() and (not isinstance(value, str) or value not in self.named):
            raise RefusedError(self._not_offered(name, value, ()))

    def _check_classifier(self, value: Any, name: str = "classifier") -> None:
        known = isinstance(value, str) and (value in self.named or value in CLASSIFIERS)
        if not known and not (isinstance(value, str) and value.startswith("zero-shot:")):
            raise RefusedError(self._not_offered(name, value, [*CLASSIFIERS, "zero-shot:LABEL,LABEL"]))

    def _check_prior(self, value: Any) -> None:
        """Refuse files; probabilities by token id are part of the request."""
        if isinstance(value, Mapping) and "file" not in value and "fingerprint" not in value:
            return
        name = value.get("file") if isinstance(value, Mapping) else value
        if not isinstance(name, str) or (name not in priors.BUNDLED and name not in self.named):
            raise RefusedError(self._not_offered("prior", name, priors.BUNDLED))

    def _not_offered(self, name: str, value: Any, known: Collection[str]) -> str:
        offered = ", ".join([*known, *self.named])
        use = f"use one of {offered}; " if offered else ""
        return (
            f"{name}={brief(value)} is not offered here: {use}others are named when the server is started, "
            "with --allow NAME"
        )

    def _check_cost(self, guidance: Guidance | None) -> None:
        """Refuse guidance that would run too many passes or ask too many questions."""
        limits = self.limits
        parts = split(guidance)
        for part in (parts.sampling, parts.canvas, guidance):
            for name in ("particles", "max_branches", "iterations"):
                number = getattr(part, name, 1)
                if number > limits.particles:
                    raise RefusedError(f"{name}={number} is more than the {limits.particles} that this server takes")
        if parts.canvas is not None:
            self._check_cost_of_predictor(parts.canvas)
        for one in parts.reweighting:
            self._check_cost_of_candidates(one)
        count = 0 if parts.branching is None else len(parts.branching.branches)
        if count > limits.branches:
            raise RefusedError(f"the guidance runs {count} branches, and this server {limits.branches}; leave some out")

    def _check_cost_of_predictor(self, guidance: CanvasGuidance) -> None:
        self._check_classifier(guidance.predictor, "predictor")
        for name in ("samples", "top_k"):
            number = getattr(guidance, name, 0)
            if number is None or number > self.limits.candidates:
                raise RefusedError(
                    f"{name}={number} asks about too many texts for this server; give {self.limits.candidates} or fewer"
                )

    def _check_cost_of_candidates(self, guidance: TokenReweighting) -> None:
        limits = self.limits
        top_k = guidance.top_k
        if top_k is None or top_k > limits.candidates:
            raise RefusedError(
                f"top_k={top_k} asks about too many candidates for this server; give {limits.candidates} or fewer"
            )
        classifier = getattr(guidance, "classifier", None)
        if classifier is None:
            return
        # Checked here as well, since a formula can make a reweighting whose classifier is not a field of the request.
        self._check_classifier(classifier)
        if isinstance(classifier, str) and classifier.startswith("zero-shot:"):
            labels = classifier.count(",") + 1
            if labels * top_k > limits.questions:
                raise RefusedError(
                    f"top_k={top_k} with {labels} labels asks the model {labels * top_k:,} questions a step, "
                    f"and this server {limits.questions}; lower top_k"
                )


def _texts(value: Any) -> Sequence[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        inner: Collection[Any] = value.values()
    else:
        inner = value if isinstance(value, list) else ()
    return [text for one in inner for text in _texts(one)]
