"""From what a client writes (``extra_args``, ``vllm_xargs`` over HTTP) to a checked request.

Everything wrong raises a ``ValueError`` that names the argument, its value and the remedy; vLLM answers it with
HTTP 400. Knows no vLLM: it reads attributes of the sampling parameters.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from textguide.engine import branch_inputs
from textguide.guidance import AWRS, CAIF, CFG, BranchGuidance, FeynmanKac
from textguide.guidance.base import SELF
from textguide.guidance.prompts import as_prompt

from .adapters import find, too_many
from .constraints import AWRS_ARGUMENTS, CONSTRAINT_ARGUMENTS, CRITIC, asked, requested
from .images import NEGATIVE_IMAGE, NONE, SAME, kind_of
from .plan import too_large
from .request_guidance import BRANCH_IDS, GUIDANCE, Given, Reading, branches_of, described
from .requests import Limits, Request

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
NEGATIVE_LORA = "negative_lora"
"""The argument with the adapter of the negative branch, ``base`` for none."""
EFFECT = "guidance_effect"
MOST_PARTICLES = 1024
PREFIXES = ("guidance", "negative", "caif", "awrs")


def asks(extra: Mapping[str, Any] | None) -> bool:
    """Whether any of our arguments is given."""
    return any(str(key).startswith(PREFIXES) for key in extra or ())


def parse(params: Any, limits: Limits | None = None, given: Given | None = None) -> Request | None:
    """What sampling parameters ask for, but for how tokens are drawn; None where they ask for no guidance.

    Args:
        params: vLLM's ``SamplingParams``.
        limits: of the engine.
        given: the prompt.

    Raises:
        ValueError: an argument is unknown, has a value that cannot work, or cannot be combined with another.
    """
    extra = params.extra_args or {}
    if not asks(extra):
        return None
    limits, given = limits or Limits(), given or Given()
    short = [*ARGUMENTS, *PROMPTS, NEGATIVE_LORA, *CAIF_ARGUMENTS, *CONSTRAINT_ARGUMENTS, *AWRS_ARGUMENTS]
    known = [GUIDANCE, BRANCH_IDS, EFFECT, NEGATIVE_IMAGE, CRITIC, *short]
    for key in extra:
        if str(key).startswith(PREFIXES) and key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise ValueError(f"{key!r} is no argument of guidance; use {close[0] if close else ', '.join(known)}")
    effect = extra.get(EFFECT, False)
    if effect not in (0, 1):
        raise ValueError(f"{EFFECT}={_brief(effect)} must be true or false")
    if extra.get(GUIDANCE) is not None:
        both = next((name for name in short if extra.get(name) is not None), None)
        if both is not None:
            raise ValueError(f"{GUIDANCE} and {both} exclude each other; put what {both} says into {GUIDANCE}")
        request = _described(params, extra, limits, given)
    elif extra.get(BRANCH_IDS) is not None:
        raise ValueError(f"{BRANCH_IDS} needs {GUIDANCE}, whose branches read them")
    else:
        request = _spelled(params, extra, limits, given)
    _check_combinations(params)
    if request.caif and given.images is not None:
        raise ValueError("caif does not work with images: its classifier reads texts; use textguide.caption")
    if request.population is not None and given.images is not None:
        raise ValueError(
            f"awrs_particles={request.particles} does not work with images, which was not tested; use textguide.caption"
        )
    if request.guidance is None and not request.caif and request.awrs is None and request.population is None:
        return None
    if request.population is not None:
        _check_population(params, request, limits)
    _check_size(params, request, limits, given)
    return dataclasses.replace(request, effect=bool(effect))


def _described(params: Any, extra: Mapping[str, Any], limits: Limits, given: Given) -> Request:
    """What the argument ``guidance`` asks for."""
    parts = described(extra[GUIDANCE], (*limits.models, *limits.adapters))
    ids = extra.get(BRANCH_IDS)
    sees = kind_of(extra, given.images)
    read, readings = branches_of(parts.branching, given, limits.tokenizer, ids, limits.adapters, sees)
    for one in read:
        _check_ids("a branch of guidance", one.ids, limits)
    drawn: dict[str, Any] = {}
    branching, weighs = parts.branching, False
    try:
        if isinstance(parts.sampling, FeynmanKac):
            branching, weighs = _weighed(params, parts.sampling, branching), True
            if parts.sampling.particles > 1:
                drawn = {"population": parts.sampling.constrained}
        caif = tuple(_engines(one, limits) for one in parts.reweighting)
        if isinstance(parts.sampling, AWRS):
            drawn = _awrs(params, {**requested(parts.sampling), CRITIC: extra.get(CRITIC)}, limits)
        elif extra.get(CRITIC) is not None:
            raise ValueError(f"{CRITIC}={_brief(extra[CRITIC])} weighs texts of awrs; name it in guidance")
    except ValueError as error:
        message = re.sub(r"awrs_(regex|json_schema|grammar|constraint)", "constraint", str(error))
        raise ValueError(f"{GUIDANCE}: {message.replace('awrs_', '')}") from None
    return _request(branching, read, readings, given, caif=caif, weighs=weighs, **drawn)


def _request(guidance: Any, read: Sequence[Reading], readings: Any, given: Given, **more: Any) -> Request:
    return Request(
        guidance,
        tuple(one.ids for one in read),
        readings,
        adapters=tuple(one.adapter for one in read) if any(one.adapter != given.adapter for one in read) else (),
        sees=None if given.images is None else tuple(one.sees for one in read),
        **more,
    )


def _weighed(params: Any, weighing: FeynmanKac, branching: BranchGuidance | None) -> BranchGuidance:
    """``branching`` with its scores left un-normalised, whose normalisers weigh a text."""
    if branching is None:
        raise ValueError("feynman-kac weighs texts by what normalising a guidance divides by; give one beside it")
    if weighing.constraint is not None:
        raise ValueError(f"constraint={_brief(weighing.constraint)} does not travel with feynman-kac; use awrs")
    if branching.skip_threshold is not None:
        raise ValueError("skip_threshold leaves out what feynman-kac weighs texts by; leave it out")
    _check_fields(params, "feynman-kac", _WEIGHTS_EXCLUDE)
    return weighing.product(branching)


_WEIGHTS_EXCLUDE: tuple[tuple[str, Any, str], ...] = (
    ("structured_outputs", None, "the weights are not those of texts that it allows; leave one of them out"),
    ("repetition_detection", None, "a text that it ends is no text of the product; leave it out"),
)


def _check_fields(params: Any, name: str, excluded: Sequence[tuple[str, Any, str]]) -> None:
    """Refuse sampling parameters that do not work with the argument ``name``, whose tokens are drawn."""
    for field, allowed, reason in excluded:
        value = getattr(params, field, allowed)
        if value != allowed and value:
            raise ValueError(f"{field}={_brief(value)} does not work with {name}: {reason}")
    if not getattr(params, "temperature", 1.0):
        raise ValueError(f"temperature=0 does not work with {name}: its tokens are drawn; give one above 0")


def _engines(caif: Any, limits: Limits) -> CAIF:
    """``caif`` with the engine's classifier, which it has to name."""
    if limits.classifier is None or caif.classifier != limits.classifier_name:
        has = "no classifier" if limits.classifier is None else f"the classifier {limits.classifier_name!r} alone"
        raise ValueError(
            f"classifier={_brief(caif.classifier)}: this engine has {has}; classifiers are named when it starts, such "
            "as textguide serve MODEL --classifier sentiment"
        )
    _check_target("target", caif.target, limits)
    return dataclasses.replace(caif, classifier=limits.classifier)


def _spelled(params: Any, extra: Mapping[str, Any], limits: Limits, given: Given) -> Request:
    """What the short arguments ask for."""
    asked_for = {name: extra[name] for name in ARGUMENTS if name in extra}
    if not asked_for and not any(extra.get(name) is not None for name in (*PROMPTS, NEGATIVE_LORA, NEGATIVE_IMAGE)):
        asked_for = {"guidance_scale": 1.0}  # a classifier or a constraint alone
    try:
        cfg = CFG(**{ARGUMENTS[name]: value for name, value in asked_for.items()})
    except ValueError as error:
        raise ValueError(_in_the_clients_words(str(error), ARGUMENTS)) from None
    negative = _negative(extra, limits)
    caif = _caif(extra, limits)
    drawn = _awrs(params, extra, limits)
    weighing = () if caif is None else (caif,)
    adapter = given.adapter
    if extra.get(NEGATIVE_LORA) is not None:
        adapter = find(NEGATIVE_LORA, extra[NEGATIVE_LORA], limits.adapters)
        if negative is None and adapter == given.adapter:
            raise ValueError(
                f"{NEGATIVE_LORA}={adapter.name!r} is the adapter of the request itself, so that its negative branch "
                "would say the same; name another one, or give a negative_prompt"
            )
    if cfg.is_neutral:
        return _request(None, (), (), given, caif=weighing, **drawn)
    kind, sees = kind_of(extra, given.images), NONE
    if negative is None:
        if adapter != given.adapter and extra.get(NEGATIVE_IMAGE) is None:  # one against another behind the same prompt
            negative, sees = given.ids, NONE if given.images is None else SAME
        elif given.images is not None:
            negative, sees = given.images.unconditional(given.ids, kind)
        else:
            negative = given.ids[-1:]
    return _request(cfg, [Reading(negative, adapter, sees)], ((1, SELF),), given, caif=weighing, **drawn)


def _check_size(params: Any, request: Request, limits: Limits, given: Given) -> None:
    """Refuse a group of requests that could never stand in the engine together."""
    if not request.prompts and request.particles == 1:
        return
    new, longest = getattr(params, "max_tokens", None), limits.longest
    lengths = [len(prompt) + (new or longest or 0) for prompt in (given.ids, *request.prompts)]
    if longest is not None:
        lengths = [min(length, longest) for length in lengths]
    reason = too_large(lengths * request.particles, limits.places, limits.budget, limits.blocks, limits.block_size)
    reason = reason or too_many((given.adapter, *request.adapters), limits.most_adapters)
    if reason is not None:
        what = f"guidance {getattr(request.guidance, 'name', '')!r}"
        if request.particles > 1:
            what = f"awrs_particles={request.particles}" + (f" under {what}" if request.prompts else "")
        raise ValueError(f"{what} does not fit this engine: {reason}")


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
    _check_target("caif_target", caif.target, limits)
    return None if caif.is_neutral else caif


def _check_target(name: str, target: str | int, limits: Limits) -> None:
    if hasattr(limits.classifier, "index"):
        try:
            limits.classifier.index(target)
        except ValueError as error:
            raise ValueError(f"{name}={_brief(target)}: {error}") from None


def _awrs(params: Any, extra: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """The fields of a request that say how its tokens are drawn."""
    awrs = asked(extra, {} if limits.constraints is None else limits.constraints.named)
    if awrs is None:
        return {}
    name = next(name for name in (*CONSTRAINT_ARGUMENTS, CRITIC) if extra.get(name) is not None)
    together = awrs.particles > 1 or extra.get(CRITIC) is not None
    _check_fields(params, name, _CONSTRAINT_EXCLUDES)
    if limits.constraints is None:
        raise ValueError(f"{name}={_brief(extra[name])} needs the engine's tokenizer, and this engine has none")
    try:
        limits.constraints.start(awrs, _ends(params, limits.tokenizer))
        limits.constraints.critic(extra.get(CRITIC))
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("awrs_") else f"{name}: {error}") from None
    return {"population": awrs, "critic": extra.get(CRITIC)} if together else {"awrs": awrs}


def _check_population(params: Any, request: Request, limits: Limits) -> None:
    """Refuse what texts that are resampled together cannot have."""
    what = f"awrs_particles={request.particles}"
    if request.particles > MOST_PARTICLES:
        raise ValueError(f"awrs_particles={_brief(request.particles)} must be {MOST_PARTICLES} at most")
    if getattr(params, "n", 1) not in (1, request.particles):
        raise ValueError(
            f"n={params.n} does not work with {what}: each particle is a choice; leave n out, or give that number"
        )
    if getattr(getattr(params, "output_kind", None), "name", "") == "DELTA":
        raise ValueError(
            f"stream=True does not work with {what}: a text may be dropped until all have ended; leave it out"
        )
    if request.guidance is not None and request.guidance.skip_threshold is not None:
        raise ValueError(
            f"guidance_skip_threshold={request.guidance.skip_threshold} does not work with {what}: steps rest by the "
            "history of a text, and texts go on from others; leave it out"
        )
    if limits.lone is not None:
        raise ValueError(f"{what} does not work with {limits.lone}; use several requests, or an engine without it")


_CONSTRAINT_EXCLUDES: tuple[tuple[str, Any, str], ...] = (
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
    _check_ids(name, ids, limits)
    return tuple(ids)


def _check_ids(name: str, ids: Sequence[int], limits: Limits) -> None:
    """Refuse token ids that the engine cannot read."""
    if limits.vocabulary is not None:
        for token in ids:
            if not 0 <= token < limits.vocabulary:
                raise ValueError(f"{name} has token id {token}; the vocabulary has {limits.vocabulary} tokens")
    if limits.longest is not None and len(ids) >= limits.longest:
        raise ValueError(f"{name} has {len(ids)} tokens, and the engine has room for {limits.longest - 1}; shorten it")


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
