"""From what a page or a client sends to checked values: nothing in it may name a file, a folder or code of ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..constraints import Regex
from ..constraints.engines import DEFAULT
from ..constraints.patterns import BACKTRACKING
from ..forward.steering_vectors import BUNDLED
from ..guidance import Guidance, TokenReweighting, as_guidance, split
from ..guidance.base import SELF
from ..guidance.places import check_place
from .limits import Limits
from .method_schema import loading

CLASSIFIERS = ("sentiment", "sentiment-minilm", "sentiment-smollm2", "profanity")
"""Classifiers that come with textguide or with one of its extras."""
KINDS = ("regex", "json-schema", "grammar", "any-of", "all-of", "not")
"""Constraints that are made of text alone."""
OPTIONS: dict[str, type | tuple[type, ...]] = {
    "max_new_tokens": int, "temperature": (int, float), "top_p": (int, float), "top_k": int, "min_p": (int, float),
    "repetition_penalty": (int, float), "no_repeat_ngram_size": int, "seed": int,
}  # fmt: skip
ROLES = ("system", "user", "assistant")


class RefusedError(ValueError):
    """What a visitor asked for cannot be done; the message says what to change."""


@dataclass(frozen=True)
class Asked:
    """One run that a visitor asked for.

    Args:
        prompt: a text or a chat.
        guidance: None for plain decoding.
        options: of :func:`textguide.generate`.
        forced: token ids with which the text begins, where it goes on from another one.
    """

    prompt: Any
    guidance: Guidance | None
    options: dict[str, Any]
    forced: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rules:
    """What may be asked for.

    Args:
        limits: how much.
        named: names of classifiers, rewards, values, vectors and constraints that the server was started with.
    """

    limits: Limits = field(default_factory=Limits)
    named: Collection[str] = ()

    def asked(self, values: Mapping[str, Any], place: str = "generate") -> Asked:
        """A run, from the JSON of a request.

        Raises:
            RefusedError: something in it is malformed, beyond the limits, or not allowed.
        """
        only(values, ("prompt", "guidance", "options", "forced"))
        options = self.options(values.get("options") or {})
        return Asked(
            self.prompt(values.get("prompt")),
            self.guidance(values.get("guidance"), place),
            options,
            self.forced(values.get("forced") or [], options.get("max_new_tokens", self.limits.new_tokens)),
        )

    def text(self, value: Any, name: str) -> str:
        """A text that is not too long."""
        if not isinstance(value, str):
            raise RefusedError(f"{name}={_brief(value)} must be a text")
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
        """Sampling and length."""
        if not isinstance(values, Mapping):
            raise RefusedError(f"options={_brief(values)} must be an object")
        only(values, OPTIONS)
        found = {name: value for name, value in values.items() if value is not None}
        for name, value in found.items():
            if isinstance(value, bool) or not isinstance(value, OPTIONS[name]):
                kind = "whole number" if OPTIONS[name] is int else "number"
                raise RefusedError(f"{name}={_brief(value)} must be a {kind}")
        new = found.setdefault("max_new_tokens", min(48, self.limits.new_tokens))
        if not 1 <= new <= self.limits.new_tokens:
            raise RefusedError(f"max_new_tokens={new} must lie between 1 and {self.limits.new_tokens} on this server")
        if abs(found.get("seed", 0)) >= 2**63:
            raise RefusedError(f"seed={found['seed']} must be smaller than 2⁶³")
        if not 0 <= found.get("temperature", 1) <= 100:
            raise RefusedError(f"temperature={found['temperature']} must lie between 0 and 100; 0 draws nothing")
        if found.get("temperature") == 0:  # the most likely token
            del found["temperature"]
        return found

    def forced(self, values: Any, new: int) -> tuple[int, ...]:
        """Token ids with which a text begins."""
        whole = isinstance(values, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in values)
        if not whole or any(one < 0 for one in values):
            raise RefusedError(f"forced={_brief(values)} must be a list of token ids")
        if len(values) > new:
            raise RefusedError(f"forced has {len(values)} tokens, and max_new_tokens={new}; raise it")
        return tuple(values)

    def guidance(self, value: Any, place: str = "generate") -> Guidance | None:
        """A guidance from an object with a method and its fields, or a list of these that act together.

        Raises:
            RefusedError: it is malformed, names something of this machine, costs too much, or does not run there.
        """
        parts = value if isinstance(value, list) else [] if value is None else [value]
        if len(parts) > 8:
            raise RefusedError(f"{len(parts)} guidances were given; compose eight at most")
        for part in parts:
            self._check(part)
        try:
            guidance = as_guidance(parts) if parts else None
            check_place(guidance, place)
        except RefusedError:
            raise
        except TypeError as error:
            raise RefusedError(f"guidance lacks a field: {error}") from None
        except ValueError as error:
            raise RefusedError(str(error)) from None
        except Exception as error:  # a value of a type that a method did not think of
            raise RefusedError(f"guidance={_brief(value)} has a value that does not fit: {error}") from None
        self._check_cost(guidance)
        return guidance

    def constraint(self, value: Any, name: str = "constraint") -> None:
        """Refuse a constraint that reads a file or names code.

        Raises:
            RefusedError: it does, or is none.
        """
        if isinstance(value, str):
            if value in self.named:
                return
            kind, _, rest = value.partition(":")
            if kind == "regex":
                self._check_pattern(rest)
                return
            raise RefusedError(
                f"{name}={_brief(value)}: write regex:PATTERN, or an object with a kind ({', '.join(KINDS)}); this "
                "page reads no files"
            )
        if not isinstance(value, Mapping) or value.get("kind") not in KINDS:
            raise RefusedError(f"{name}={_brief(value)} must be an object with a kind: {', '.join(KINDS)}")
        kind = value["kind"]
        if kind == "regex":
            if value.get("engine") == BACKTRACKING:
                raise RefusedError(f"engine={BACKTRACKING!r} may take any time, and hold up others; leave it out")
            self._check_pattern(value.get("pattern"))
        if kind == "json-schema" and not isinstance(value.get("schema"), (Mapping, bool)):
            schema = _brief(value.get("schema"))
            raise RefusedError(f"schema={schema} must be a JSON object; this server reads no files")
        if kind == "grammar":
            text = self.text(value.get("grammar"), "grammar")
            if "\n" not in text and "start" not in text:
                raise RefusedError(f"grammar={_brief(text)} has no rule start; this server reads no files")
            if text.strip().endswith(".lark") and "\n" not in text.strip():
                raise RefusedError(f"grammar={_brief(text)} names a file; this server reads no files")
        inner = value.get("constraints", [value["constraint"]] if "constraint" in value else [])
        if not isinstance(inner, list):
            raise RefusedError(f"constraints={_brief(inner)} must be a list")
        for one in inner:
            self.constraint(one, name)

    def _check_pattern(self, pattern: Any) -> None:
        """Refuse patterns that no automaton takes: trying them may take any time, and others wait."""
        try:
            Regex(self.text(pattern, "pattern"), engine=DEFAULT)
        except RefusedError:
            raise
        except ValueError as error:
            remedy = "name it when the server is started: --allow regex:PATTERN"
            raise RefusedError(str(error).replace(f"engine={BACKTRACKING!r} takes it", remedy)) from None

    def _check(self, part: Any) -> None:
        """Refuse what a guidance may not name, before anything is made of it."""
        if not isinstance(part, Mapping) or not isinstance(part.get("method"), str):
            raise RefusedError(f"guidance={_brief(part)} must be an object with a method and its fields")
        if part["method"] == "composed":
            parts = part.get("parts")
            if not isinstance(parts, list):
                raise RefusedError("composed has no list of parts; give one")
            for one in parts:
                self._check(one)
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
                raise RefusedError(self._unnamed(name, value, BUNDLED))
        elif name == "constraint":
            self.constraint(value)
        elif name == "critic":
            raise RefusedError("critic is a function, which no page can send; leave it out")
        elif (method, name) in loading() and (not isinstance(value, str) or value not in self.named):
            raise RefusedError(self._unnamed(name, value, ()))

    def _check_classifier(self, value: Any, name: str = "classifier") -> None:
        known = isinstance(value, str) and (value in self.named or value in CLASSIFIERS)
        if not known and not (isinstance(value, str) and value.startswith("zero-shot:")):
            raise RefusedError(self._unnamed(name, value, [*CLASSIFIERS, "zero-shot:LABEL,LABEL"]))

    def _unnamed(self, name: str, value: Any, known: Collection[str]) -> str:
        offered = ", ".join([*known, *self.named])
        use = f"use one of {offered}; " if offered else ""
        return (
            f"{name}={_brief(value)} is not offered here: {use}others are named when the server is started, "
            "with --allow NAME"
        )

    def _check_cost(self, guidance: Guidance | None) -> None:
        limits, parts = self.limits, split(guidance)
        for part in (parts.sampling, parts.canvas, guidance):
            for name in ("particles", "max_branches", "iterations"):
                number = getattr(part, name, 1)
                if number > limits.particles:
                    raise RefusedError(f"{name}={number} is more than the {limits.particles} that this server takes")
        if parts.canvas is not None:
            self._check_classifier(parts.canvas.predictor, "predictor")
            for name in ("samples", "top_k"):
                number = getattr(parts.canvas, name, 0)
                if number is None or number > limits.candidates:
                    raise RefusedError(
                        f"{name}={number} asks about too many texts for this server; give {limits.candidates} or fewer"
                    )
        for one in parts.reweighting:
            assert isinstance(one, TokenReweighting)
            if one.top_k is None or one.top_k > limits.candidates:
                raise RefusedError(
                    f"top_k={one.top_k} asks about too many candidates for this server; give {limits.candidates} or "
                    "fewer"
                )
            scorer = getattr(one, "classifier", None)
            if scorer is not None:  # whatever form of a guidance led to it
                self._check_classifier(scorer)
            labels = scorer.count(",") + 1 if isinstance(scorer, str) and scorer.startswith("zero-shot:") else 0
            if labels * one.top_k > limits.questions:
                raise RefusedError(
                    f"top_k={one.top_k} with {labels} labels asks the model {labels * one.top_k:,} questions a step, "
                    f"and this server {limits.questions}; lower top_k"
                )
        count = 0 if parts.branching is None else len(parts.branching.branches)
        if count > limits.branches:
            raise RefusedError(f"the guidance runs {count} branches, and this server {limits.branches}; leave some out")


def names_of_models(guidance: Guidance | None) -> set[str]:
    """Further models that the branches of ``guidance`` run."""
    branching = split(guidance).branching
    return set() if branching is None else {branch.model for branch in branching.branches} - {SELF}


def only(values: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse names that mean nothing.

    Raises:
        RefusedError: there is one; the message names it.
    """
    for name in values:
        if name not in known:
            raise RefusedError(f"{_brief(name)} means nothing here; known are {', '.join(known)}")


async def from_stream(parts: AsyncIterable[bytes], most: int) -> dict[str, Any]:
    """The object that the body of a request holds.

    Args:
        parts: the body as it comes in.
        most: bytes that it may have.

    Raises:
        RefusedError: it is larger, or holds none.
    """
    data = b""
    async for part in parts:
        data += part
        if len(data) > most:
            raise RefusedError(f"the request is larger than {most:,} bytes; send less")
    return from_json(data)


def from_json(body: bytes) -> dict[str, Any]:
    """The object that a request holds.

    Raises:
        RefusedError: it holds none.
    """

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        values = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the request is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise RefusedError("the request must be a JSON object")
    return values


def _texts(value: Any) -> Sequence[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for one in inner for text in _texts(one)]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
