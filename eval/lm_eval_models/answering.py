"""What every model that answers lm-eval under guidance shares: settings, kept answers, what guidance did."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM

from textguide.guidance import CFG, Guidance, as_guidance, split
from textguide.guidance.spec import parse
from textguide.step.effect import Effect, join
from textguide.tasks import is_protected

from .contexts import UNCONDITIONAL

Record = Mapping[str, Any]


class Memory:
    """Answers in memory alone, with the interface of a journal."""

    def __init__(self) -> None:
        self.done: dict[str, Record] = {}

    def append(self, key: str, record: Record) -> None:
        """Keep the answer to ``key``."""
        self.done[key] = record

    def __contains__(self, key: object) -> bool:
        return key in self.done


class Generations:
    """The answers to one call's generation requests: those that are kept already, and those that are missing.

    Args:
        requests: lm-eval's. Text written for a protected task may repeat its question, and stays in memory.
        names: what tells requests with different answers apart. Of several requests with one name, as lm-eval repeats
            them for samples, each has an answer of its own.
        memo: where the others are kept.
    """

    def __init__(self, requests: Sequence[Any], names: Sequence[str], memo: Any) -> None:
        times: Counter[str] = Counter()
        self._keys = []
        for name in names:
            self._keys.append(f"{name}/{times[name]}")
            times[name] += 1
        unwritten = Memory()
        self._stores = [unwritten if is_protected(str(request.task_name)) else memo for request in requests]
        self.missing = [n for n, key in enumerate(self._keys) if key not in self._stores[n]]

    def seed(self, seed: int, first: int) -> int:
        """The seed of the chunk that begins with the request ``first``, in a run with ``seed``.

        Every chunk has randomness of its own: a resumed run draws what an uninterrupted one would.
        """
        return int(hashlib.sha256(f"{seed}/{self._keys[first]}".encode()).hexdigest()[:12], 16)

    def keep(self, number: int, text: str) -> None:
        """The answer to the request ``number``."""
        self._stores[number].append(self._keys[number], {"text": text})

    def texts(self) -> list[str]:
        """All answers, in the order of the requests."""
        return [str(store.done[key]["text"]) for store, key in zip(self._stores, self._keys, strict=True)]


class Answering:
    """Answers under one of several settings, and keeps answers by key and what guidance did while generating.

    Attributes:
        settings: the guidances; None is plain decoding.
        current: index into ``settings`` of the one that answers.
        uncond: what the unconditional branch reads; see :class:`textguide.eval.GuidedLM`.
        seed: of drawn answers.
        tasks: lm-eval tasks by name, where a task's instruction has to be found.
        effects: what guidance did while generating, by setting.
    """

    def _settle(self, settings: Sequence[Guidance | None], uncond: str, seed: int, memo: Any) -> None:
        """Set the attributes.

        Raises:
            ValueError: ``uncond`` is unknown, or a setting has a negative prompt beside it.
        """
        if uncond not in UNCONDITIONAL:
            raise ValueError(f"uncond={uncond!r} is unknown; use one of {', '.join(UNCONDITIONAL)}")
        if uncond != UNCONDITIONAL[0]:
            branching = [split(setting).branching for setting in settings]
            if any(getattr(one, "negative_prompt", None) is not None for one in branching):
                raise ValueError(f"uncond={uncond!r} and a negative prompt exclude each other; give one of them")
        self.settings = list(settings)
        self.uncond, self.seed, self.current = uncond, seed, 0
        self.tasks: dict[str, Any] = {}
        self.effects: dict[int, list[Effect]] = {}
        self._cut: set[str] = set()
        self._memo = Memory() if memo is None else memo

    @property
    def setting(self) -> Guidance | None:
        """The guidance that answers."""
        return self.settings[self.current]

    @property
    def fingerprint(self) -> str:
        """Differs whenever an answer may differ: the setting and the unconditional context."""
        setting = self.setting
        if setting is None or setting.is_neutral:
            return "plain"
        return f"{setting.fingerprint}-{self.uncond}"

    @property
    def truncated(self) -> int:
        """Number of requests whose context was cut from the left to fit the model."""
        return len(self._cut)

    def effect(self, setting: int) -> Effect | None:
        """What guidance did while generating under ``setting``, or None where nothing was generated."""
        return join(self.effects[setting]) if self.effects.get(setting) else None

    def use_memo(self, memo: Any) -> None:
        """Keep answers in ``memo`` from now on: something with ``append``, ``done`` and ``in``, such as a journal."""
        self._memo = memo


class AnsweringLM(Answering, LM):
    """A model of lm-eval that is none of its own: a tokenizer and a chat template."""

    tokenizer: Any

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's records."""
        return str(getattr(self.tokenizer, "name_or_path", "")).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as the model's template writes it."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )


def settings_of(
    guidance: Any, settings: Sequence[Any] | None, shorthand: Mapping[str, Any] | None = None
) -> list[Guidance | None]:
    """The settings that a model's arguments describe.

    Args:
        guidance: one setting, as :func:`textguide.guidance.as_guidance` takes it. In text, fields may also be
            separated by semicolons, since lm-eval splits its ``model_args`` at commas, and ``python:MODULE:CLASS``
            may name a class.
        settings: several of them.
        shorthand: fields of :class:`textguide.CFG`; those that are None are not given.

    Raises:
        ValueError: more than one of the three is given, or ``settings`` is empty.
    """
    fields = {name: value for name, value in (shorthand or {}).items() if value is not None}
    if settings is not None:
        if guidance is not None or fields:
            raise ValueError("settings= excludes guidance= and its shorthand; give one or the other")
        if not settings:
            raise ValueError("settings is empty; give at least one guidance, or None for plain")
        return [as_guidance(setting) for setting in settings]
    one = _spelled(guidance)
    if not fields:
        return [one]
    if one is not None:
        raise ValueError(f"guidance= and {', '.join(fields)}= exclude each other; put them into the guidance")
    return [CFG(**fields)]


def _spelled(guidance: Any) -> Guidance | None:
    if not isinstance(guidance, str) or guidance.strip().lower() in ("none", "plain"):
        return as_guidance(guidance)
    is_json = guidance.lstrip().startswith("{")
    return parse(guidance if is_json or "," in guidance else guidance.replace(";", ","), imports=True)


def key(kind: str, *parts: Any) -> str:
    """The name under which an answer is kept: differs whenever a part does."""
    text = json.dumps(parts, sort_keys=True, default=list)
    return f"{kind}/{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def cut(text: str, until: Any) -> str:
    """``text`` up to the first of the texts ``until``, a text or several."""
    for stop in [until] if isinstance(until, str) else until or []:
        if stop:
            text = text.split(stop, 1)[0]
    return text
