"""The shared parts of all guided models of lm-eval: their settings, recorded answers, and the effect of guidance."""

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

from ..results.journal import Memory
from .contexts import UNCONDITIONAL


class Generations:
    """The answers to one call's generation requests: those that are recorded, and those that are missing.

    Args:
        requests: lm-eval's requests. A text of a protected task may repeat its question, so it is never written to a
            file.
        names: identifies the answer to each request. If several requests have the same name, because lm-eval repeats
            them for samples, each has its own answer.
        memo: where answers are recorded.

    Attributes:
        missing: the numbers of the requests that do not have an answer yet.
    """

    def __init__(self, requests: Sequence[Any], names: Sequence[str], memo: Any) -> None:
        times: Counter[str] = Counter()
        self._keys = []
        for name in names:
            self._keys.append(f"{name}/{times[name]}")
            times[name] += 1
        protected = Memory()
        self._stores = [protected if is_protected(str(request.task_name)) else memo for request in requests]
        self.missing = [number for number, key in enumerate(self._keys) if key not in self._stores[number]]

    def seed(self, seed: int, first: int) -> int:
        """The seed of the chunk that starts with the request ``first``, in a run with ``seed``.

        Every chunk has its own seed, so that a resumed run draws the same texts as an uninterrupted one.
        """
        return int(hashlib.sha256(f"{seed}/{self._keys[first]}".encode()).hexdigest()[:12], 16)

    def keep(self, number: int, text: str) -> None:
        """Record the answer to the request ``number``."""
        self._stores[number].append(self._keys[number], {"text": text})

    def texts(self) -> list[str]:
        """All answers, in the order of the requests."""
        return [str(store.done[key]["text"]) for store, key in zip(self._stores, self._keys, strict=True)]


class Answering:
    """A model with several settings, of which one answers, and with recorded answers and effects.

    Attributes:
        settings: the guidances; None is plain decoding.
        current: index into ``settings`` of the one that answers.
        uncond: input of the unconditional branch; see :class:`textguide.eval.GuidedLM`.
        seed: seed of sampled answers.
        tasks: lm-eval tasks by name, if ``uncond`` needs a task's instruction.
        effects: what guidance did during generation, by setting.
    """

    def _set_up(self, settings: Sequence[Guidance | None], uncond: str, seed: int, memo: Any) -> None:
        """Initialise the attributes. This is not ``__init__``, which belongs to lm-eval's class.

        Raises:
            ValueError: ``uncond`` is unknown, or a setting also has a negative prompt.
        """
        if uncond not in UNCONDITIONAL:
            raise ValueError(f"uncond={uncond!r} is unknown; use one of {', '.join(UNCONDITIONAL)}")
        if uncond != UNCONDITIONAL[0]:
            branching = [split(setting).branching for setting in settings]
            if any(getattr(guidance, "negative_prompt", None) is not None for guidance in branching):
                raise ValueError(f"uncond={uncond!r} and a negative prompt exclude each other; use one of them")
        self.settings = list(settings)
        self.uncond = uncond
        self.seed = seed
        self.current = 0
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
        """Identifies everything that answers depend on: the setting and the unconditional context."""
        setting = self.setting
        if setting is None or setting.is_neutral:
            return "plain"
        return f"{setting.fingerprint}-{self.uncond}"

    @property
    def truncated(self) -> int:
        """Number of requests whose context was cut from the left to fit the model."""
        return len(self._cut)

    def effect(self, setting: int) -> Effect | None:
        """What guidance did during generation under ``setting``; None if nothing was generated."""
        return join(self.effects[setting]) if self.effects.get(setting) else None

    def use_memo(self, memo: Memory) -> None:
        """Record answers in ``memo`` from now on, and use those that it has."""
        self._memo = memo


class AnsweringLM(Answering, LM):
    """A model of lm-eval that does not derive from ``HFLM``, with a tokenizer and a chat template."""

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
        guidance: one setting, as :func:`textguide.guidance.as_guidance` accepts it. In text, fields may also be
            separated by semicolons, since lm-eval splits its ``model_args`` at commas, and ``python:MODULE:CLASS``
            may name a class.
        settings: several settings.
        shorthand: fields of :class:`textguide.CFG`; None: not set.

    Raises:
        ValueError: more than one of the three is set, or ``settings`` is empty.
    """
    fields = {name: value for name, value in (shorthand or {}).items() if value is not None}
    if settings is not None:
        if guidance is not None or fields:
            raise ValueError("settings= excludes guidance= and its shorthand; use one or the other")
        if not settings:
            raise ValueError("settings is empty; pass at least one guidance, or None for plain decoding")
        return [as_guidance(setting) for setting in settings]
    setting = _parsed(guidance)
    if not fields:
        return [setting]
    if setting is not None:
        raise ValueError(f"guidance= and {', '.join(fields)}= exclude each other; put them into the guidance")
    return [CFG(**fields)]


def _parsed(guidance: Any) -> Guidance | None:
    if not isinstance(guidance, str) or guidance.strip().lower() in ("none", "plain"):
        return as_guidance(guidance)
    is_json = guidance.lstrip().startswith("{")
    return parse(guidance if is_json or "," in guidance else guidance.replace(";", ","), imports=True)


def key(kind: str, *parts: Any) -> str:
    """The key of an answer in a journal, a hash of everything that it depends on."""
    text = json.dumps(parts, sort_keys=True, default=list)
    return f"{kind}/{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def cut(text: str, until: Any) -> str:
    """``text`` up to the first occurrence of one of the stop texts ``until``, which is a text or a list."""
    for stop in [until] if isinstance(until, str) else until or []:
        if stop:
            text = text.split(stop, 1)[0]
    return text
