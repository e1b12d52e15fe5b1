"""Checks a guided request where vLLM takes it in, so that a wrong argument is answered there."""

from __future__ import annotations

import sys
from typing import Any

from .constraints import EngineConstraints
from .extras import OURS, constraints_of
from .requests import Limits, asks, parse
from .reweighting import classifier_of

TESTED = ("0.32.0",)
"""The vLLM versions that the tests ran with."""


def validate(params: Any) -> None:
    """Refuse arguments that cannot work; leave the negative prompt's token ids for the engine in ``extra_args``.

    Raises:
        ValueError: an argument cannot work; the message names it.
    """
    # vLLM checks one object once a prompt, and a client has no business with this key.
    extra = {key: value for key, value in (params.extra_args or {}).items() if key != OURS}
    if len(extra) != len(params.extra_args or {}):
        params.extra_args = extra
    if asks(extra):
        asked = parse(params, _limits())
        if asked is not None:
            params.extra_args = {**extra, OURS: asked.to_dict()}


def _limits() -> Limits:
    """Those of the engine whose input is being checked: vLLM hands a processor's check nothing but the parameters."""
    frame = sys._getframe(1)
    while frame is not None:
        checker: Any = frame.f_locals.get("self")
        if type(checker).__name__ == "InputProcessor" and hasattr(checker, "model_config"):
            config = checker.model_config
            return _limits_of(checker.vllm_config, checker.tokenizer, config.get_vocab_size(), config.max_model_len)
        frame = frame.f_back  # type: ignore[assignment]
    return Limits()


def _limits_of(config: Any, tokenizer: Any, size: int, longest: int) -> Limits:
    constraints = None if tokenizer is None else EngineConstraints(constraints_of(config), lambda: tokenizer, size)
    return Limits(tokenizer, size, longest, classifier_of(config), constraints)
