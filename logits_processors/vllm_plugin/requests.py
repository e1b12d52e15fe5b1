"""What a client asks of a guided vLLM engine, read from ``extra_args`` (``vllm_xargs`` over HTTP) and checked.

Everything wrong raises a ``ValueError`` that names the argument, its value and the remedy; vLLM answers it with
HTTP 400. Knows no vLLM: it reads attributes of the sampling parameters.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from textguide.engine import branch_inputs
from textguide.guidance import AWRS, CAIF, CFG
from textguide.guidance.prompts import as_prompt

from .constraints import AWRS_ARGUMENTS, CONSTRAINT_ARGUMENTS, EngineConstraints, asked

# What a client writes → the field of CFG.
ARGUMENTS = {
    "guidance_scale": "scale",
    "guidance_schedule": "schedule",
    "guidance_min_scale": "min_scale",
    "guidance_max_scale": "max_scale",
    "guidance_start": "start",
    "guidance_stop": "stop",
    "guidance_skip_threshold": "skip_threshold",
}
CAIF_ARGUMENTS = {
    "caif_target": "target",
    "caif_weight": "weight",
    "caif_top_k": "top_k",
    "caif_entropy_threshold": "entropy_threshold",
    "caif_every": "every",
    "caif_include_prompt": "include_prompt",
    "caif_schedule": "schedule",
    "caif_start": "start",
    "caif_stop": "stop",
}
PROMPTS = ("negative_prompt", "negative_prompt_token_ids", "negative_messages")
EFFECT = "guidance_effect"
PREFIXES = ("guidance", "negative", "caif", "awrs")
ENGINES = "the engine's"


@dataclass(frozen=True)
class Draw:
    """How the next token is taken from the guided distribution. That of a pair is computed outside of vLLM's sampler,
    so this is taken from the user's sampling parameters, which the engine then sees as greedy.

    Args:
        temperature: 0 takes the most likely token.
        top_k: 0 keeps every token.
        top_p: 1 keeps every token.
        min_p: 0 keeps every token.
        seed: of this request's own random numbers.
        repetition_penalty: over prompt and text, 1 changes nothing.
        presence_penalty: subtracted from tokens that were written.
        frequency_penalty: subtracted from tokens for every time they were written.
        logprobs: how many log-probabilities of the guided distribution to report beside that of the token; None: none.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None

    @classmethod
    def of(cls, params: Any) -> Draw:
        """From vLLM's sampling parameters; a seed is drawn where the user gave none."""
        return cls(
            temperature=float(params.temperature),
            top_k=max(int(params.top_k), 0),
            top_p=float(params.top_p),
            min_p=float(params.min_p),
            seed=random.getrandbits(62) if params.seed is None else int(params.seed),
            repetition_penalty=float(params.repetition_penalty),
            presence_penalty=float(params.presence_penalty),
            frequency_penalty=float(params.frequency_penalty),
            logprobs=params.logprobs,
        )


@dataclass(frozen=True)
class Request:
    """A guided request.

    Args:
        guidance: with everything but the negative prompt.
        negative: token ids of the negative prompt; None: the last token of the prompt.
        draw: how tokens are taken.
        horizon: the longest continuation, which defines progress.
        effect: whether what guidance did is to be measured and reported with the answer.
        caif: how a classifier reweights the distribution; the classifier is the engine's, and does not travel.
        awrs: how tokens are drawn under a constraint, which is described as :func:`~.constraints.asked` does.
        limit: most tokens of the text.
    """

    guidance: CFG
    negative: tuple[int, ...] | None = None
    draw: Draw = Draw()
    horizon: int = 1
    effect: bool = False
    caif: CAIF | None = None
    awrs: AWRS | None = None
    limit: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the way from process to process."""
        values = self.guidance.to_dict()
        return {
            "guidance": {name: values[name] for name in ("method", *ARGUMENTS.values())},
            "negative": None if self.negative is None else list(self.negative),
            "draw": dataclasses.asdict(self.draw),
            "horizon": self.horizon,
            "effect": self.effect,
            "caif": self.caif and {name: getattr(self.caif, name) for name in CAIF_ARGUMENTS.values()},
            "awrs": self.awrs and {name: getattr(self.awrs, name) for name in ("constraint", *AWRS_ARGUMENTS.values())},
            "limit": self.limit,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], classifier: Any = ENGINES) -> Request:
        """The request that :meth:`to_dict` described; ``classifier`` is the engine's."""
        guidance = CFG.from_dict(values["guidance"])
        assert isinstance(guidance, CFG)
        negative = None if values["negative"] is None else tuple(values["negative"])
        caif = values["caif"] and CAIF(classifier, **values["caif"])
        awrs = values["awrs"] and AWRS(**values["awrs"])
        draw = Draw(**values["draw"])
        return cls(guidance, negative, draw, values["horizon"], values["effect"], caif, awrs, values["limit"])


@dataclass(frozen=True)
class Limits:
    """What an engine can take.

    Args:
        tokenizer: for negative prompts that are texts or chats; None where the engine has none.
        vocabulary: number of tokens.
        longest: the engine's ``max_model_len``; at least one token must fit behind a negative prompt.
        classifier: the one that the engine was started with, or its name; None: none.
        constraints: makes those of requests; None where the engine cannot.
    """

    tokenizer: Any = None
    vocabulary: int | None = None
    longest: int | None = None
    classifier: Any = None
    constraints: EngineConstraints | None = None


def asks(extra: Mapping[str, Any] | None) -> bool:
    """Whether any of our arguments is given."""
    return any(str(key).startswith(PREFIXES) for key in extra or ())


def parse(params: Any, limits: Limits | None = None) -> Request | None:
    """What sampling parameters ask for, but for how tokens are drawn; None where they ask for no guidance.

    Args:
        params: vLLM's ``SamplingParams``.
        limits: of the engine.

    Raises:
        ValueError: an argument is unknown, has a value that cannot work, or cannot be combined with another.
    """
    extra = params.extra_args or {}
    if not asks(extra):
        return None
    limits = limits or Limits()
    known = [*ARGUMENTS, *PROMPTS, EFFECT, *CAIF_ARGUMENTS, *CONSTRAINT_ARGUMENTS, *AWRS_ARGUMENTS]
    for key in extra:
        if str(key).startswith(PREFIXES) and key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise ValueError(f"{key!r} is no argument of guidance; use {close[0] if close else ', '.join(known)}")
    given = {name: extra[name] for name in ARGUMENTS if name in extra}
    if not given and not any(extra.get(name) is not None for name in PROMPTS):
        given = {"guidance_scale": 1.0}  # a classifier or a constraint alone
    try:
        guidance = CFG(**{ARGUMENTS[name]: value for name, value in given.items()})
    except ValueError as error:
        raise ValueError(_in_the_clients_words(str(error), ARGUMENTS)) from None
    negative = _negative(extra, limits)
    _check_combinations(params)
    effect = extra.get(EFFECT, False)
    if effect not in (0, 1):
        raise ValueError(f"{EFFECT}={_brief(effect)} must be true or false")
    caif = _caif(extra, limits)
    awrs = _awrs(params, extra, limits)
    if guidance.is_neutral and caif is None and awrs is None:
        return None
    return Request(guidance, negative, effect=bool(effect), caif=caif, awrs=awrs)


def _in_the_clients_words(message: str, arguments: Mapping[str, str]) -> str:
    """A field by the name under which the client gave it."""
    for name, field in arguments.items():
        message = re.sub(rf"(?<!\w){field}=", f"{name}=", message)
    return message


def _caif(extra: Mapping[str, Any], limits: Limits) -> CAIF | None:
    given = {field: extra[name] for name, field in CAIF_ARGUMENTS.items() if name in extra}
    if not given:
        return None
    if limits.classifier is None:
        first = next(name for name in CAIF_ARGUMENTS if name in extra)
        raise ValueError(
            f"{first}={_brief(extra[first])}: this engine has no classifier; start it with one, such as "
            "textguide serve MODEL --classifier sentiment"
        )
    if "target" not in given:
        raise ValueError("caif_target is missing; name the class to steer towards")
    try:
        caif = CAIF(classifier=limits.classifier, **given)
    except ValueError as error:
        raise ValueError(_in_the_clients_words(str(error), CAIF_ARGUMENTS)) from None
    if hasattr(limits.classifier, "index"):
        try:
            limits.classifier.index(caif.target)
        except ValueError as error:
            raise ValueError(f"caif_target={_brief(caif.target)}: {error}") from None
    return None if caif.is_neutral else caif


def _awrs(params: Any, extra: Mapping[str, Any], limits: Limits) -> AWRS | None:
    awrs = asked(extra, {} if limits.constraints is None else limits.constraints.named)
    if awrs is None:
        return None
    name = next(name for name in CONSTRAINT_ARGUMENTS if extra.get(name) is not None)
    for field, allowed, reason in _CONSTRAINT_EXCLUDES:
        value = getattr(params, field, allowed)
        if value != allowed and value:
            raise ValueError(f"{field}={_brief(value)} does not work with {name}: {reason}")
    if not getattr(params, "temperature", 1.0):
        raise ValueError(f"temperature=0 does not work with {name}: its tokens are drawn; give one above 0")
    if limits.constraints is None:
        raise ValueError(f"{name}={_brief(extra[name])} needs the engine's tokenizer, and this engine has none")
    try:
        limits.constraints.start(awrs, _ends(params, limits.tokenizer))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return awrs


_CONSTRAINT_EXCLUDES: tuple[tuple[str, Any, str], ...] = (
    ("n", 1, "an answer has room for one log-weight; send that many requests"),
    ("stop", None, "a text ends where its constraint says; leave it out"),
    ("ignore_eos", False, "a text ends with an end token; leave it out"),
    ("min_tokens", 0, "the constraint says how long texts are; leave it out"),
    ("structured_outputs", None, "the two would have to agree on every token; leave one of them out"),
    ("repetition_detection", None, "a text ends where its constraint says; leave it out"),
)


def _ends(params: Any, tokenizer: Any) -> set[int]:
    end = getattr(tokenizer, "eos_token_id", None)
    return {*(getattr(params, "stop_token_ids", None) or ()), *(() if end is None else (end,))}


def _negative(extra: Mapping[str, Any], limits: Limits) -> tuple[int, ...] | None:
    given = [name for name in PROMPTS if extra.get(name) is not None]
    if not given:
        return None
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} exclude each other; give one of them")
    name, value = given[0], extra[given[0]]
    if name == "negative_messages":
        value = _messages(value)
    prompt = as_prompt(value)
    kinds = {"negative_prompt": str, "negative_prompt_token_ids": tuple, "negative_messages": tuple}
    if prompt is None or not isinstance(prompt, (str, tuple) if name == "negative_prompt" else kinds[name]):
        wanted = {"negative_prompt": "a text", "negative_prompt_token_ids": "a list of token ids"}
        raise ValueError(f"{name}={_brief(value)} must be {wanted.get(name, 'a list of chat messages')}")
    ids = branch_inputs.encode(prompt, limits.tokenizer, name)
    if limits.vocabulary is not None:
        for token in ids:
            if not 0 <= token < limits.vocabulary:
                raise ValueError(f"{name} has token id {token}; the vocabulary has {limits.vocabulary} tokens")
    if limits.longest is not None and len(ids) >= limits.longest:
        raise ValueError(f"{name} has {len(ids)} tokens, and the engine has room for {limits.longest - 1}; shorten it")
    return tuple(ids)


def _messages(value: Any) -> Any:
    """Chat messages, which HTTP carries as JSON text (``vllm_xargs`` holds no objects)."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"negative_messages={_brief(value)} is no JSON ({error})") from None
    well_formed = isinstance(value, (list, tuple)) and all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in value
    )
    if not value or not well_formed:
        raise ValueError(
            f"negative_messages={_brief(value)} must be a list of messages with a role and a content, as JSON text"
        )
    return value


def _check_combinations(params: Any) -> None:
    """Refuse what would give something else than the guided distribution."""
    for name, reason in (
        ("prompt_logprobs", "they are those of the prompt without guidance"),
        ("logprob_token_ids", "they are those of the distribution without guidance; use logprobs"),
        ("thinking_token_budget", "it forces tokens after guidance"),
        ("trace_decode_token_ids", "it forces tokens"),
    ):
        if getattr(params, name, None) is not None:
            raise ValueError(f"{name}={_brief(getattr(params, name))} does not work with guidance: {reason}")
    if (getattr(params, "logprobs", None) or 0) < 0:
        raise ValueError(f"logprobs={params.logprobs} does not work with guidance; give a number of 0 or more")
    if getattr(params, "watermarking", None):
        raise ValueError("watermarking=True does not work with guidance; it changes the distribution after guidance")


def _brief(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
