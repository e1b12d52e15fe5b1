"""Speculation for guided requests: its settings, what it excludes, and guesses that are looked up. Knows no vLLM.

One pass of the engine reads the guesses with the newest token. vLLM's own speculation excludes logits processors in its
first model runner, so its configuration is not used: the scheduler makes the guesses (``drafts.py``), and the worker
verifies them (``verification.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textguide.engine.speculation.drafts import Drafter
from textguide.engine.speculation.value import Speculation
from textguide.support.checks import is_whole_number

from .draft_model import ModelGuesser
from .extras import ours_of
from .further_models import check_models, models_of, resolve

KEY = "speculation"
"""The key of the settings in textguide's part of ``additional_config``."""
FIELDS: dict[str, dict[str, Any]] = {
    "ngram": {"num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1},
    "draft_model": {"num_speculative_tokens": 4, "model": None},
}
"""The fields of each method besides ``method``, with their defaults."""
MOST = 64
"""The largest value of a field that is a number."""


def settings_of(config: Any) -> dict[str, Any]:
    """The settings of speculation, from vLLM's words for it.

    Args:
        config: vLLM's ``speculative_config``: ``{"method": "ngram", "num_speculative_tokens": 4}``, with the longest
            and shortest run of tokens that is looked up, ``prompt_lookup_max`` (3) and ``prompt_lookup_min`` (1); or
            ``{"method": "draft_model", "model": PATH, "num_speculative_tokens": 4}``.

    Raises:
        ValueError: it is something else; the message names it.
        ModelUnavailableError: the draft model does not exist.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"speculative_config={config!r} must be an object such as {{'method': 'ngram'}}")
    method = config.get("method")
    if method not in FIELDS:
        raise ValueError(
            f"speculative_config: method={method!r} does not work with guidance: vLLM's first model runner lets no "
            "logits processor verify what a head on the model drafts; use 'ngram', which looks up guesses in the "
            "prompt and the text, or 'draft_model'"
        )
    settings = dict(FIELDS[method])
    unknown = next((name for name in config if name not in ("method", *settings)), None)
    if unknown is not None:
        raise ValueError(
            f"speculative_config: {unknown!r} is not a field of {method!r}; those are method, {', '.join(settings)}"
        )
    for name in settings:
        if config.get(name) is not None:
            settings[name] = config[name]
        settings[name] = _checked(name, settings[name])
    if settings.get("prompt_lookup_min", 1) > settings.get("prompt_lookup_max", 1):
        raise ValueError(
            f"speculative_config: prompt_lookup_min={settings['prompt_lookup_min']} must be at most "
            f"prompt_lookup_max={settings['prompt_lookup_max']}"
        )
    return settings


def _checked(name: str, value: Any) -> Any:
    if name == "model":
        if not isinstance(value, str) or not value:
            raise ValueError(f"speculative_config: model={value!r} must name the draft model")
        return resolve(value)
    if not is_whole_number(value) or not 1 <= value <= MOST:
        raise ValueError(f"speculative_config: {name}={value!r} must be a whole number from 1 to {MOST}")
    return value


EXCLUDED: dict[str, tuple[Any, str]] = {
    "async_scheduling": (
        False,
        "the next step would begin before it is known which guesses were right; leave it off (--no-async-scheduling)",
    ),
    "tensor_parallel_size": (1, "it was not tested on several devices; set it to 1"),
    "pipeline_parallel_size": (1, "the first stage would not know which guesses were right; set it to 1"),
    "enable_lora": (False, "adapters were not tested with it; leave one of them out"),
    "models": ((), "further models were not tested with it; leave one of them out"),
    "VLLM_USE_V2_MODEL_RUNNER": (False, "Model Runner V2 was not tested with it; set it to 0"),
}
"""Settings that exclude speculation: the one value that does not, and why, with the remedy."""


def check_excluded(settings: Mapping[str, Any]) -> None:
    """Raise a ``ValueError`` that names a setting with which speculation was not tested.

    Args:
        settings: of an engine that speculates, by the names in :data:`EXCLUDED`.
    """
    for name, (allowed, reason) in EXCLUDED.items():
        value = settings.get(name)
        if value and value != allowed:
            raise ValueError(f"speculative_config does not work with {name}={value!r}: {reason}")


def check_config(config: Any) -> None:
    """:func:`check_excluded` for vLLM's ``VllmConfig``."""
    check_excluded(
        {
            "async_scheduling": config.scheduler_config.async_scheduling,
            "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
            "pipeline_parallel_size": config.parallel_config.pipeline_parallel_size,
            "enable_lora": config.lora_config is not None,
            "models": tuple(models_of(config)),
            "VLLM_USE_V2_MODEL_RUNNER": bool(config.use_v2_model_runner),
        }
    )


def speculation_of(config: Any) -> dict[str, Any] | None:
    """The settings of an engine that speculates, as :func:`settings_of` returns them; None for others."""
    settings: dict[str, Any] | None = ours_of(config).get(KEY)
    return settings


def may_guess(params: Any) -> bool:
    """Whether the tokens of a guided request may be guessed.

    They may not if something else than the guided processor changes its distribution, since that sees the newest token
    only.

    Args:
        params: vLLM's ``SamplingParams``.
    """
    names = ("structured_outputs", "bad_words", "logit_bias", "allowed_token_ids", "min_tokens", "repetition_detection")
    return not any(getattr(params, name, None) for name in names)


def check_draft(served: str, settings: Mapping[str, Any] | None, longest: int | None) -> None:
    """Refuse a draft model that cannot guess for the served one.

    Args:
        served: folder or name of the served model.
        settings: as :func:`settings_of` returns them; None if the engine does not speculate.
        longest: ``max_model_len``, if it is given.

    Raises:
        ValueError: it has another vocabulary or too few positions; the message names it.
    """
    if settings is not None and "model" in settings:
        check_models(served, {"draft_model": settings["model"]}, longest)


def guesser_of(config: Any) -> AnyGuesser | None:
    """What guesses tokens for an engine; None if it does not speculate.

    Args:
        config: vLLM's ``VllmConfig``.

    Raises:
        ValueError: a setting excludes speculation, or the draft model does not work; the message names it.
    """
    settings = speculation_of(config)
    if settings is None:
        return None
    check_config(config)
    check_draft(config.model_config.model, settings, config.model_config.max_model_len)
    return (ModelGuesser if "model" in settings else LookupGuesser)(settings)


class LookupGuesser:
    """Guesses for the requests of one engine, looked up in prompt and text.

    Args:
        settings: as :func:`settings_of` returns them.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.most = settings["num_speculative_tokens"]
        self._shortest = settings["prompt_lookup_min"]
        speculation = Speculation("prompt-lookup", self.most, settings["prompt_lookup_max"])
        self._drafter = Drafter(speculation)
        # A Drafter knows rows by number. Each request gets one that was never used.
        self._rows: dict[str, int] = {}
        self._n_requests = 0
        self._guesses: dict[str, Any] = {}

    def guess(self, request: str, tokens: Sequence[int], most: int) -> list[int]:
        """At most ``most`` guesses at what follows ``tokens``, those that are likely enough to pay off."""
        if request not in self._rows:
            self._rows[request] = self._n_requests
            self._n_requests += 1
        guesses = self._drafter.draft(self._rows[request], tokens, most)
        if guesses and int(guesses[0][1].removeprefix("lookup")) < self._shortest:
            guesses = []
        self._guesses[request] = guesses
        return [token for token, _ in guesses]

    def judge(self, request: str, right: int) -> None:
        """Learn how many of the last guesses were right."""
        self._drafter.judge(self._guesses.pop(request, ()), right)

    def forget(self, request: str) -> None:
        """Forget a request that has ended."""
        self._guesses.pop(request, None)
        row = self._rows.pop(request, None)
        if row is not None:
            self._drafter.forget(row)


AnyGuesser = LookupGuesser | ModelGuesser
