"""What every model that answers lm-eval under guidance shares: kept answers, and what guidance did to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lm_eval.api.model import LM

from textguide.engine.effect import Effect, join

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


class Answering:
    """Keeps answers by key, and what guidance did while generating, by setting."""

    effects: dict[int, list[Effect]]
    _memo: Any

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
