"""Arguments of a client (``extra_args``, ``vllm_xargs`` over HTTP), made into a checked request.

A guidance is given in one of two ways: as JSON in ``guidance``, or by short arguments for the most common methods
(``guidance_scale``, ``negative_prompt``, ``caif_target``, ``awrs_regex``, …). An argument that cannot work raises a
``ValueError`` that names it, its value and the remedy; vLLM answers with HTTP 400. Knows no vLLM but the names of its
sampling parameters.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from textguide.engine import branch_inputs
from textguide.guidance import AWRS, CAIF, CFG, BranchGuidance, FeynmanKac
from textguide.guidance.base import SELF
from textguide.guidance.prompts import as_prompt
from textguide.serving.field_names import meant, named_field
from textguide.support.checks import brief

from .adapters import find, too_many
from .constraint_arguments import AWRS_ARGUMENTS, CONSTRAINT_ARGUMENTS, awrs_of, is_compiled, short_arguments
from .constraints import CRITIC, check_after
from .engine_priors import with_engine_prior
from .extras import OURS
from .images import NEGATIVE_IMAGE, NONE, SAME, kind_of
from .plan import too_large
from .request_guidance import BRANCH_IDS, GUIDANCE, Reading, RequestPrompt, branches_of, parse_guidance
from .requests import Limits, Request

# The short arguments, and the fields of CFG and CAIF that they set.
CFG_ARGUMENTS = {
    "guidance_scale": "scale",
    "guidance_schedule": "schedule",
    "guidance_min_scale": "min_scale",
    "guidance_max_scale": "max_scale",
    "guidance_start": "start",
    "guidance_stop": "stop",
    "guidance_skip_threshold": "skip_threshold",  # deprecated and ignored, as in `generate`
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
"""The argument with the adapter of the negative branch; ``base`` is the model without an adapter."""
EFFECT = "guidance_effect"
"""The argument that asks for the effect of guidance in the report."""
SHORT = (*CFG_ARGUMENTS, *PROMPTS, NEGATIVE_LORA, *CAIF_ARGUMENTS, *CONSTRAINT_ARGUMENTS, *AWRS_ARGUMENTS)
KNOWN = (GUIDANCE, BRANCH_IDS, EFFECT, NEGATIVE_IMAGE, CRITIC, *SHORT)
PREFIXES = ("guidance", "negative", "caif", "awrs")
"""Arguments that start with one of these are textguide's; others are left to vLLM and its plugins."""
ARGUMENTS = "textguide_arguments"
"""The argument with all others as JSON text, which a server makes of a request's body (:mod:`~.request_fields`)."""
CHAT = "textguide_chat"
"""The key of ``extra_args`` that marks a chat: its messages, or :data:`~.validation.UNKNOWN_MESSAGES`."""
BEAMS = "use_beam_search"
NO_BEAMS = (
    f"{BEAMS}=True does not work with guidance: vLLM's beams are chosen without it; leave one of them out, or use "
    "textguide.generate(num_beams=…)"
)
OWN = (OURS, CHAT, ARGUMENTS)
"""Keys of ``extra_args`` that clients do not set."""
MOST_PARTICLES = 1024
MOST_CHARACTERS = 64
"""Most characters of a token, if a tokenizer does not tell."""

Excluded = tuple[tuple[str, Any, str], ...]
"""Sampling parameters that do not work with something: the name, the value that does, and why with the remedy."""
WEIGHTS_EXCLUDE: Excluded = (
    ("structured_outputs", None, "the weights do not take its masks into account; leave one of them out"),
    ("repetition_detection", None, "a text that it ends is not a sample of the product; leave it out"),
)
CONSTRAINT_EXCLUDES: Excluded = (
    ("stop", None, "a text ends when its constraint allows it; leave it out"),
    ("ignore_eos", False, "a text ends with an end token; leave it out"),
    ("min_tokens", 0, "the constraint determines how long texts are; leave it out"),
    ("structured_outputs", None, "the two would have to agree on every token; leave one of them out"),
    ("repetition_detection", None, "a text ends when its constraint allows it; leave it out"),
)
GUIDANCE_EXCLUDES = (
    ("prompt_logprobs", "they are those of the prompt without guidance"),
    ("logprob_token_ids", "they are those of the distribution without guidance; use logprobs"),
    ("thinking_token_budget", "it forces tokens after guidance"),
    ("trace_decode_token_ids", "it forces tokens"),
)
SAMPLING_PARAMETERS = (
    *(name for name, *_ in (*WEIGHTS_EXCLUDE, *CONSTRAINT_EXCLUDES, *GUIDANCE_EXCLUDES)),
    *("temperature", "logprobs", "watermarking", "n", "stream", BEAMS),
)
"""Sampling parameters that errors name."""


class ArgumentError(ValueError):
    """An argument of guidance cannot work.

    Args:
        message: why, with the remedy.
        name: of the argument.
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


def argument_of(error: ValueError, sent: Collection[str] = ()) -> str | None:
    """The argument, or the sampling parameter, that an error is about; None if it is about none.

    Args:
        error: raised by a check.
        sent: names of the arguments of the request; of several in a message, the first of these counts.
    """
    if isinstance(error, ArgumentError):
        return error.name
    return named_field(str(error), (*KNOWN, *SAMPLING_PARAMETERS), (*sent, *SAMPLING_PARAMETERS))


def has_guidance(extra: Mapping[str, Any] | None) -> bool:
    """Whether any argument of textguide is given."""
    return any(key == ARGUMENTS or str(key).startswith(PREFIXES) for key in extra or ())


def unpacked(extra: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in ``extra_args`` of a request, without :data:`OWN`.

    Raises:
        ArgumentError: one is misspelt.
    """
    arguments = {name: value for name, value in extra.items() if name not in OWN}
    if ARGUMENTS in extra:
        try:
            arguments |= json.loads(extra[ARGUMENTS])
        except RecursionError:
            raise ValueError("the arguments of guidance are nested too deeply; send less") from None
    check_names(arguments)
    return arguments


def check_names(extra: Mapping[str, Any]) -> None:
    """Refuse arguments that were meant to be textguide's, but have another name.

    Raises:
        ArgumentError: there is one; the message suggests the right name.
    """
    for name in extra:
        known = None if name in KNOWN else meant(name, KNOWN, PREFIXES)
        if known is not None:
            raise ArgumentError(f"{name!r} is not an argument of guidance; use {known}", str(name))


def parse(params: Any, limits: Limits | None = None, prompt: RequestPrompt | None = None) -> Request | None:
    """The guided request that sampling parameters describe, without how tokens are drawn.

    Args:
        params: vLLM's ``SamplingParams``.
        limits: of the engine.
        prompt: of the request.

    Returns:
        The request; None if it needs no guidance.

    Raises:
        ValueError: an argument is unknown, has a value that cannot work, or cannot be combined with another.
    """
    extra = params.extra_args or {}
    if not has_guidance(extra):
        return None
    limits = limits or Limits()
    prompt = prompt or RequestPrompt()
    check_names(extra)
    effect = extra.get(EFFECT, False)
    if effect not in (0, 1):
        raise ValueError(f"{EFFECT}={brief(effect)} must be true or false")
    if extra.get(GUIDANCE) is not None:
        short = next((name for name in SHORT if extra.get(name) is not None), None)
        if short is not None:
            raise ValueError(f"{GUIDANCE} and {short} exclude each other; write what {short} sets into {GUIDANCE}")
        request = _from_guidance(params, extra, limits, prompt)
    elif extra.get(BRANCH_IDS) is not None:
        raise ValueError(f"{BRANCH_IDS} needs {GUIDANCE}, whose branches read them")
    else:
        request = _from_short_arguments(params, extra, limits, prompt)
    _check_sampling(params)
    _check_images(request, prompt)
    if request.is_plain:
        return None
    if request.population is not None:
        _check_population(params, request, limits)
    _check_size(params, request, limits, prompt)
    return dataclasses.replace(request, effect=bool(effect))


# -- a guidance as JSON ----------------------------------------------------------------------------------------------


def _from_guidance(params: Any, extra: Mapping[str, Any], limits: Limits, prompt: RequestPrompt) -> Request:
    """The request that the argument ``guidance`` describes."""
    parts = parse_guidance(extra[GUIDANCE], (*limits.models, *limits.adapters))
    for branch in () if parts.branching is None else parts.branching.branches:
        for prompt_of_branch in (branch.prompt, branch.system):
            check_characters(GUIDANCE, prompt_of_branch, limits)
    without_images = kind_of(extra, prompt.images)
    readings, sources = branches_of(
        parts.branching, prompt, limits.tokenizer, extra.get(BRANCH_IDS), limits.adapters, without_images
    )
    for reading in readings:
        _check_ids("a branch of guidance", reading.ids, limits)
    weighs = False
    sampling: dict[str, Any] = {}
    try:
        branching = with_engine_prior(parts.branching, limits.priors, limits.vocabulary)
        if isinstance(parts.sampling, FeynmanKac):
            branching = _product(params, parts.sampling, branching)
            weighs = True
            if parts.sampling.particles > 1:
                sampling = {"population": parts.sampling.constrained}
        caif = tuple(_with_classifier(part, limits) for part in parts.reweighting)
        if isinstance(parts.sampling, AWRS):
            sampling = _awrs(params, {**short_arguments(parts.sampling), CRITIC: extra.get(CRITIC)}, limits)
        elif extra.get(CRITIC) is not None:
            raise ValueError(f"{CRITIC}={brief(extra[CRITIC])} weighs texts of awrs; name it in guidance")
    except ValueError as error:
        raise ValueError(without_short_arguments(str(error))) from None
    return _request(branching, readings, sources, prompt, caif=caif, weighs=weighs, **sampling)


def without_short_arguments(message: str) -> str:
    """An error message for a client that sent a guidance, and not the short arguments that checks name."""
    message = re.sub(r"awrs_(regex|json_schema|grammar|constraint)", "constraint", message)
    return f"{GUIDANCE}: {message.replace('awrs_', '')}"


def _product(params: Any, weighing: FeynmanKac, branching: BranchGuidance | None) -> BranchGuidance:
    """``branching`` with its scores left unnormalised, since their normalisers weigh a text."""
    if branching is None:
        raise ValueError(
            "feynman-kac weighs texts by what normalising a guidance divides by; combine it with one, such as cfg"
        )
    if weighing.constraint is not None:
        raise ValueError(f"constraint={brief(weighing.constraint)} does not travel with feynman-kac; use awrs")
    _check_parameters(params, "feynman-kac", WEIGHTS_EXCLUDE)
    return weighing.product(branching)


def _with_classifier(caif: Any, limits: Limits) -> CAIF:
    """``caif`` with the engine's classifier, which it has to name."""
    if limits.classifier is None or caif.classifier != limits.classifier_name:
        has = "no classifier" if limits.classifier is None else f"only the classifier {limits.classifier_name!r}"
        raise ValueError(
            f"classifier={brief(caif.classifier)}: this engine has {has}; name classifiers when it starts, such as "
            "textguide serve MODEL --classifier sentiment"
        )
    _check_target("target", caif.target, limits)
    return dataclasses.replace(caif, classifier=limits.classifier)


# -- short arguments -------------------------------------------------------------------------------------------------


def _from_short_arguments(params: Any, extra: Mapping[str, Any], limits: Limits, prompt: RequestPrompt) -> Request:
    """The request that the short arguments describe."""
    cfg = _cfg(extra)
    negative = _negative_prompt(extra, limits, prompt)
    caif = _caif(extra, limits)
    reweighting = () if caif is None else (caif,)
    sampling = _awrs(params, extra, limits)
    adapter = prompt.adapter
    if extra.get(NEGATIVE_LORA) is not None:
        adapter = find(NEGATIVE_LORA, extra[NEGATIVE_LORA], limits.adapters)
        if negative is None and adapter == prompt.adapter:
            raise ValueError(
                f"{NEGATIVE_LORA}={adapter.name!r} is the adapter of the request itself, so its negative branch would "
                "be the same; name another adapter, or give a negative_prompt"
            )
    if cfg.is_neutral:
        return _request(None, (), (), prompt, caif=reweighting, **sampling)
    reading = _negative_reading(extra, prompt, negative, adapter)
    return _request(cfg, [reading], ((1, SELF),), prompt, caif=reweighting, **sampling)


def _cfg(extra: Mapping[str, Any]) -> CFG:
    fields = {field: extra[name] for name, field in CFG_ARGUMENTS.items() if name in extra}
    has_branch = any(extra.get(name) is not None for name in (*PROMPTS, NEGATIVE_LORA, NEGATIVE_IMAGE))
    if not fields and not has_branch:
        fields = {"scale": 1.0}  # only a classifier or a constraint
    try:
        return CFG(**fields)
    except ValueError as error:
        raise ValueError(_with_argument_names(str(error), CFG_ARGUMENTS)) from None


def _negative_reading(
    extra: Mapping[str, Any], prompt: RequestPrompt, negative: tuple[int, ...] | None, adapter: Any
) -> Reading:
    """What the negative branch reads: the negative prompt, or the default for this prompt."""
    kind = kind_of(extra, prompt.images)
    if negative is not None:
        return Reading(negative, adapter, NONE)
    if adapter != prompt.adapter and extra.get(NEGATIVE_IMAGE) is None:
        # The two branches differ by their adapters, so they read the same prompt.
        return Reading(prompt.ids, adapter, NONE if prompt.images is None else SAME)
    if prompt.images is not None:
        ids, sees = prompt.images.unconditional(prompt.ids, kind)
        return Reading(ids, adapter, sees)
    return Reading(prompt.ids[-1:], adapter, NONE)


def _negative_prompt(extra: Mapping[str, Any], limits: Limits, given: RequestPrompt) -> tuple[int, ...] | None:
    """Token ids of the negative prompt; None if none is given."""
    names = [name for name in PROMPTS if extra.get(name) is not None]
    if not names:
        return None
    if len(names) > 1:
        raise ValueError(f"{names[0]} and {names[1]} exclude each other; give one of them")
    name = names[0]
    value = extra[name]
    if name == "negative_messages":
        value = _messages(value)
    prompt = as_prompt(value)
    if prompt is None or not isinstance(prompt, (str, tuple) if name == "negative_prompt" else tuple):
        expected = {"negative_prompt": "a text", "negative_prompt_token_ids": "a list of token ids"}
        raise ValueError(f"{name}={brief(value)} must be {expected.get(name, 'a list of chat messages')}")
    if given.prompt is not None:
        branch_inputs.check_templates([given.prompt], [prompt], name)
    check_characters(name, prompt, limits)
    ids = branch_inputs.encode(prompt, limits.tokenizer, name)
    _check_ids(name, ids, limits)
    return tuple(ids)


def check_characters(name: str, prompt: Any, limits: Limits) -> None:
    """Refuse a prompt that cannot fit the engine by its length, before it is tokenised; vLLM does so for its own."""
    if limits.longest is None or limits.tokenizer is None:
        return
    texts = [prompt] if isinstance(prompt, str) else [getattr(turn, "content", "") for turn in prompt or ()]
    count = sum(map(len, texts))
    most = limits.longest * getattr(limits.tokenizer, "max_chars_per_token", MOST_CHARACTERS)
    if count > most:
        raise ValueError(f"{name} has {count:,} characters, and the engine has room for {most:,} at most; shorten it")


def _messages(value: Any) -> Any:
    """Chat messages, which HTTP carries as JSON text (``vllm_xargs`` holds no objects)."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"negative_messages={brief(value)} is not JSON ({error})") from None
    if not value or not isinstance(value, (list, tuple)) or not all(map(_is_message, value)):
        raise ValueError(
            f"negative_messages={brief(value)} must be a list of messages with a role and a content, as JSON text"
        )
    return value


def _is_message(turn: Any) -> bool:
    return isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)


def _caif(extra: Mapping[str, Any], limits: Limits) -> CAIF | None:
    fields = {field: extra[name] for name, field in CAIF_ARGUMENTS.items() if name in extra}
    if not fields:
        return None
    if limits.classifier is None:
        first = next(name for name in CAIF_ARGUMENTS if name in extra)
        raise ValueError(
            f"{first}={brief(extra[first])}: this engine has no classifier; start it with one, such as "
            "textguide serve MODEL --classifier sentiment"
        )
    try:
        caif = CAIF(classifier=limits.classifier, **{"target": 0, **fields})
    except ValueError as error:
        raise ValueError(_with_argument_names(str(error), CAIF_ARGUMENTS)) from None
    if fields.get("target") is None:
        raise ValueError("caif_target is missing; name the class to steer towards")
    _check_target("caif_target", caif.target, limits)
    return None if caif.is_neutral else caif


def _awrs(params: Any, extra: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """The fields of a request that describe how its tokens are drawn under a constraint; empty without one."""
    awrs = awrs_of(extra, {} if limits.constraints is None else limits.constraints.named)
    if awrs is None:
        return {}
    name = next(name for name in (*CONSTRAINT_ARGUMENTS, CRITIC) if extra.get(name) is not None)
    _check_parameters(params, name, CONSTRAINT_EXCLUDES)
    if limits.constraints is None:
        raise ValueError(f"{name}={brief(extra[name])} needs the engine's tokenizer, and this engine has none")
    try:
        if is_compiled(name, extra.get(name)):
            check_after(awrs)
        else:
            # Compiles the constraint, so that one that cannot be used is refused here and not in the worker.
            limits.constraints.start(awrs, _end_tokens(params, limits.tokenizer))
        limits.constraints.critic(extra.get(CRITIC))
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("awrs_") else f"{name}: {error}") from None
    if awrs.particles > 1 or extra.get(CRITIC) is not None:
        return {"population": awrs, "critic": extra.get(CRITIC)}
    return {"awrs": awrs}


def _end_tokens(params: Any, tokenizer: Any) -> set[int]:
    ends = set(getattr(params, "stop_token_ids", None) or ())
    end = getattr(tokenizer, "eos_token_id", None)
    if end is not None:
        ends.add(end)
    return ends


def _request(
    guidance: BranchGuidance | None,
    readings: Sequence[Reading],
    sources: tuple[tuple[int, str], ...],
    prompt: RequestPrompt,
    **fields: Any,
) -> Request:
    has_adapters = any(reading.adapter != prompt.adapter for reading in readings)
    return Request(
        guidance,
        tuple(reading.ids for reading in readings),
        sources,
        adapters=tuple(reading.adapter for reading in readings) if has_adapters else (),
        sees=None if prompt.images is None else tuple(reading.sees for reading in readings),
        **fields,
    )


def _with_argument_names(message: str, arguments: Mapping[str, str]) -> str:
    """An error message with the names of short arguments instead of those of fields."""
    for name, field in arguments.items():
        message = re.sub(rf"(?<!\w){field}=", f"{name}=", message)
    return message


# -- checks ----------------------------------------------------------------------------------------------------------


def _check_parameters(params: Any, name: str, excluded: Excluded) -> None:
    """Refuse sampling parameters that do not work with the argument ``name``, whose tokens are drawn."""
    for field, allowed, reason in excluded:
        value = getattr(params, field, allowed)
        if value != allowed and value:
            raise ValueError(f"{field}={brief(value)} does not work with {name}: {reason}")
    if not getattr(params, "temperature", 1.0):
        raise ValueError(f"temperature=0 does not work with {name}: its tokens are drawn; give one above 0")


def _check_target(name: str, target: str | int, limits: Limits) -> None:
    if hasattr(limits.classifier, "index"):
        try:
            limits.classifier.index(target)
        except ValueError as error:
            raise ValueError(f"{name}={brief(target)}: {error}") from None


def _check_ids(name: str, ids: Sequence[int], limits: Limits) -> None:
    """Refuse token ids that the engine cannot read."""
    if limits.vocabulary is not None:
        for token in ids:
            if not 0 <= token < limits.vocabulary:
                raise ValueError(f"{name} has token id {token}; the vocabulary has {limits.vocabulary} tokens")
    if limits.longest is not None and len(ids) >= limits.longest:
        raise ValueError(f"{name} has {len(ids)} tokens, and the engine has room for {limits.longest - 1}; shorten it")


def _check_sampling(params: Any) -> None:
    """Refuse sampling parameters under which texts would not follow the guided distribution."""
    for name, reason in GUIDANCE_EXCLUDES:
        if getattr(params, name, None) is not None:
            raise ValueError(f"{name}={brief(getattr(params, name))} does not work with guidance: {reason}")
    if (getattr(params, "logprobs", None) or 0) < 0:
        raise ValueError(f"logprobs={params.logprobs} does not work with guidance; give a number of 0 or more")
    if getattr(params, "watermarking", None):
        raise ValueError("watermarking=True does not work with guidance; it changes the distribution after guidance")


def _check_images(request: Request, prompt: RequestPrompt) -> None:
    """Refuse what was not tested with images in the prompt."""
    if prompt.images is None:
        return
    if request.caif:
        raise ValueError("caif does not work with images: its classifier reads texts; use textguide.caption")
    if request.population is not None:
        raise ValueError(
            f"awrs_particles={request.particles} does not work with images, which was not tested; use textguide.caption"
        )


def _check_population(params: Any, request: Request, limits: Limits) -> None:
    """Refuse what texts that are resampled together cannot have."""
    what = f"awrs_particles={request.particles}"
    if request.particles > MOST_PARTICLES:
        raise ValueError(f"awrs_particles={brief(request.particles)} must be {MOST_PARTICLES} or less")
    if getattr(params, "n", 1) not in (1, request.particles):
        raise ValueError(
            f"n={params.n} does not work with {what}: each particle is a choice; leave n out, or set it to that number"
        )
    if getattr(getattr(params, "output_kind", None), "name", "") == "DELTA":
        raise ValueError(
            f"stream=True does not work with {what}: a text may be dropped until all have ended; leave it out"
        )
    if limits.why_no_populations is not None:
        raise ValueError(
            f"{what} does not work with {limits.why_no_populations}; use several requests, or an engine without it"
        )


def _check_size(params: Any, request: Request, limits: Limits, prompt: RequestPrompt) -> None:
    """Refuse a group of requests that would never fit the engine."""
    if not request.prompts and request.particles == 1:
        return
    new = getattr(params, "max_tokens", None) or limits.longest or 0
    lengths = [len(ids) + new for ids in (prompt.ids, *request.prompts)]
    if limits.longest is not None:
        lengths = [min(length, limits.longest) for length in lengths]
    reason = too_large(lengths * request.particles, limits.places, limits.budget, limits.blocks, limits.block_size)
    reason = reason or too_many((prompt.adapter, *request.adapters), limits.most_adapters)
    if reason is not None:
        what = f"guidance {getattr(request.guidance, 'name', '')!r}"
        if request.particles > 1:
            what = f"awrs_particles={request.particles}" + (f" under {what}" if request.prompts else "")
        raise ValueError(f"{what} does not fit this engine: {reason}")
