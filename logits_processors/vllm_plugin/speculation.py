"""Guesses at the tokens of guided requests, which one pass of the engine reads with the newest token: settings,
refusals and where guesses come from. Knows no vLLM.

vLLM's own speculation excludes logits processors in its first model runner, so its configuration is not used: the
scheduler makes the guesses (``drafted.py``), and the worker verifies them (``verification.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textguide.engine.speculation.drafts import Drafter
from textguide.engine.speculation.value import Speculation

from .draft_model import ModelGuesser
from .extras import ours_of
from .further_models import check_models, models_of, resolve

KEY = "speculation"
"""Where the settings stand in our part of ``additional_config``."""
FIELDS: dict[str, dict[str, Any]] = {
    "ngram": {"num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1},
    "draft_model": {"num_speculative_tokens": 4, "model": None},
}
"""The fields of each method, beside ``method``, and their defaults; None: it has to be given."""


def settings_of(given: Any) -> dict[str, Any]:
    """What vLLM's words for speculation ask for.

    Args:
        given: vLLM's ``speculative_config``: ``{"method": "ngram", "num_speculative_tokens": 4}``, with the longest and
            shortest run of tokens that is looked up, ``prompt_lookup_max`` (3) and ``prompt_lookup_min`` (1); or
            ``{"method": "draft_model", "model": PATH, "num_speculative_tokens": 4}``.

    Raises:
        ValueError: it asks for something else; the message names it.
        ModelUnavailableError: the draft model is not there.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"speculative_config={given!r} must be an object such as {{'method': 'ngram'}}")
    method = given.get("method")
    if method not in FIELDS:
        raise ValueError(
            f"speculative_config: method={method!r} does not work with guidance: vLLM's first runner lets no logits "
            "processor judge what a head on the model drafts; use 'ngram', which looks guesses up in prompt and text, "
            "or 'draft_model'"
        )
    found = dict(FIELDS[method])
    unknown = next((name for name in given if name not in ("method", *found)), None)
    if unknown is not None:
        raise ValueError(f"speculative_config: {unknown!r} is no field here; those are method, {', '.join(found)}")
    found |= {name: given[name] for name in found if given.get(name) is not None}
    for name, value in found.items():
        if name == "model":
            if not isinstance(value, str) or not value:
                raise ValueError(f"speculative_config: model={value!r} must name the draft model")
            found[name] = resolve(value)
        elif isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 64:
            raise ValueError(f"speculative_config: {name}={value!r} must be a whole number from 1 to 64")
    if found.get("prompt_lookup_min", 1) > found.get("prompt_lookup_max", 1):
        raise ValueError(
            f"speculative_config: prompt_lookup_min={found['prompt_lookup_min']} must be at most "
            f"prompt_lookup_max={found['prompt_lookup_max']}"
        )
    return found


BESIDE: dict[str, tuple[Any, str]] = {
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
"""Settings that exclude guesses: the one value that does not, and why, with the remedy."""


def check_beside(settings: Mapping[str, Any]) -> None:
    """Raise a ``ValueError`` that names the setting beside which guesses were not tried.

    Args:
        settings: of an engine that guesses, by the names in :data:`BESIDE`.
    """
    for name, (only, reason) in BESIDE.items():
        value = settings.get(name)
        if value and value != only:
            raise ValueError(f"speculative_config does not work with {name}={value!r}: {reason}")


def refuse_with(config: Any) -> None:
    """:func:`check_beside` for vLLM's ``VllmConfig``."""
    check_beside(
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
    """The settings of an engine that guesses, as from :func:`settings_of`; None for others."""
    found: dict[str, Any] | None = ours_of(config).get(KEY)
    return found


def may_guess(params: Any) -> bool:
    """Whether the tokens of a guided request may be guessed: whatever acts on its distribution outside of the guided
    processor sees the newest token alone.

    Args:
        params: vLLM's ``SamplingParams``.
    """
    names = ("structured_outputs", "bad_words", "logit_bias", "allowed_token_ids", "min_tokens", "repetition_detection")
    return not any(getattr(params, name, None) for name in names)


def check_draft(served: str, settings: Mapping[str, Any] | None, longest: int | None) -> None:
    """Refuse a draft model that cannot guess for another one.

    Args:
        served: folder or name of the served model.
        settings: as from :func:`settings_of`; None where nothing is guessed.
        longest: ``max_model_len``, where it is given.

    Raises:
        ValueError: it has another vocabulary or too few positions; the message names it.
    """
    if settings is not None and "model" in settings:
        check_models(served, {"draft_model": settings["model"]}, longest)


def guesser_of(config: Any) -> AnyGuesser | None:
    """What guesses for an engine; None where nothing does.

    Args:
        config: vLLM's ``VllmConfig``.

    Raises:
        ValueError: something beside it, or the draft model, does not work; the message names it.
    """
    settings = speculation_of(config)
    if settings is None:
        return None
    refuse_with(config)
    check_draft(config.model_config.model, settings, config.model_config.max_model_len)
    return (ModelGuesser if "model" in settings else Guesser)(settings)


class Guesser:
    """Guesses for the requests of one engine, looked up in prompt and text.

    Args:
        settings: as from :func:`settings_of`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.most = settings["num_speculative_tokens"]
        self._shortest = settings["prompt_lookup_min"]
        speculation = Speculation("prompt-lookup", self.most, settings["prompt_lookup_max"])
        self._drafter = Drafter(speculation)
        self._rows: dict[str, int] = {}
        self._guesses: dict[str, Any] = {}
        self._born = 0

    def guess(self, request: str, tokens: Sequence[int], most: int) -> list[int]:
        """At most so many guesses at what follows ``tokens``, those that are likely enough to pay."""
        if request not in self._rows:
            self._rows[request], self._born = self._born, self._born + 1
        guesses = self._drafter.draft(self._rows[request], tokens, most)
        if guesses and int(guesses[0][1].removeprefix("lookup")) < self._shortest:
            guesses = []
        self._guesses[request] = guesses
        return [token for token, _ in guesses]

    def judge(self, request: str, right: int) -> None:
        """Learn how many of the last guesses were right."""
        self._drafter.judge(self._guesses.pop(request, ()), right)

    def forget(self, request: str) -> None:
        """A request has ended."""
        self._guesses.pop(request, None)
        row = self._rows.pop(request, None)
        if row is not None:
            self._drafter.forget(row)


AnyGuesser = Guesser | ModelGuesser
