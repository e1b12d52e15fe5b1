"""``textguide.vllm_engine``: a ``vllm.LLM`` with guidance switched on, and ``textguide.generate`` on it."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from textguide.engine import branch_inputs
from textguide.engine.results import Ending, GenerateResult
from textguide.forward.prefill import pad_left
from textguide.guidance import AWRS, CAIF, Contrast, FeynmanKac, Guidance, as_guidance, split
from textguide.guidance.composed import Parts
from textguide.models import bundled
from textguide.smc.constrained import STOPPED
from textguide.smc.particles import effective_sample_size, log_evidence
from textguide.step.effect import Effect, join, warn_if_none
from textguide.support.errors import MissingExtraError

from .adapters import adapters_of, find
from .arguments import EFFECT
from .constraints import CRITIC, critic_name, travelling
from .extras import constraints_of, critics_of, ours_of
from .further_models import models_of
from .options import prepared
from .reports import reports_of
from .request_guidance import BRANCH_IDS, GUIDANCE, check
from .reweighting import classifier_of, named
from .startup import starting

# What of transformers' generation options has the same meaning in vLLM, and its name there.
OPTIONS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "n",
}
LARGEST_SEED = 2**63


def vllm_engine(
    model: str = bundled.NAME,
    *,
    classifier: str | None = None,
    constraints: Mapping[str, str] | None = None,
    critics: Mapping[str, str] | None = None,
    models: Mapping[str, str] | None = None,
    adapters: Mapping[str, str] | None = None,
    **options: Any,
) -> Any:
    """A ``vllm.LLM`` that takes guidance: in ``extra_args`` of sampling parameters, and by ``textguide.generate``.

    Args:
        model: as for :func:`textguide.load`: the bundled model's name, a folder, a GGUF file, or a name on a model hub.
        classifier: the name of a classifier, for requests with :class:`textguide.CAIF`: ``sentiment``, a saved folder…
        constraints: for requests with :class:`textguide.AWRS`, those that do not travel with a request: by name, the
            line that leads to each, such as ``{"even": "python:MODULE:NAME"}``.
        critics: likewise the functions from a text to a log potential that weigh the texts of such requests.
        models: for methods that ask another model, such as :class:`textguide.ContrastiveDecoding`: further models by
            name, each as ``model``. They share the served model's tokens, and read every token of every request.
        adapters: folders of LoRA adapters by name, which such methods may ask as well; ``base`` is the model without
            one. ``textguide.generate(…, adapter=NAME)`` decodes with one.
        **options: those of ``vllm.LLM``. The scheduler and the logits processor are set. Steps are scheduled ahead with
            ``async_scheduling=True`` alone.

    Raises:
        MissingExtraError: vLLM is not installed.
        ValueError: an option cannot be combined with guidance; the message names it.

    Example:
        >>> llm = textguide.vllm_engine("smollm2", dtype="float32", max_model_len=1024)
        >>> textguide.generate(llm, None, ["The dragon"], guidance=CFG(1.5)).texts
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("vllm", "vllm", "serving")
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    options = prepared(
        model, classifier=classifier, constraints=constraints, critics=critics, models=models, adapters=adapters,
        **options,
    )  # fmt: skip
    with starting():
        llm = LLM(**options)
    for adapter in adapters_of(llm.llm_engine.vllm_config).values():
        if adapter.number:
            llm.llm_engine.add_lora(adapter.request(LoRARequest))  # where one does not fit, it is told now
    llm.sampling_params = SamplingParams
    llm.lora_request = LoRARequest
    llm.textguide_generate = functools.partial(generate, llm)
    return llm


def carried(
    guidance: Guidance | None, models: Collection[str], constraints: Mapping[str, str], critics: Mapping[str, str]
) -> tuple[Parts, dict[str, Any] | None, dict[str, Any]]:
    """The parts of a guidance, its constraint as a request carries it, and the argument with its critic.

    Args:
        models: names of the further models and of the adapters that the engine holds.
        constraints: those that the engine was started with, by name.
        critics: likewise.

    Raises:
        ValueError: a part of it cannot run inside vLLM, or does not travel with a request; the message names it.
    """
    check(guidance, models)
    parts = split(guidance)
    if isinstance(parts.sampling, FeynmanKac):
        return parts, parts.sampling.to_dict(), {}
    if parts.sampling is None:
        return parts, None, {}
    assert isinstance(parts.sampling, AWRS)
    constraint = travelling(parts.sampling, constraints)
    critic = critic_name(parts.sampling, critics)
    return parts, constraint, {} if critic is None else {CRITIC: critic}


def arguments_of(
    parts: Parts, ids: Sequence[Sequence[int]], constraint: Mapping[str, Any] | None, classifier: str | None
) -> dict[str, Any] | None:
    """``extra_args`` of a request; None where it asks for no guidance.

    Args:
        parts: of the guidance.
        ids: token ids of every branch.
        constraint: the constraint as a request carries it.
        classifier: the engine's, by its name.
    """
    branching: Any = parts.branching
    if isinstance(branching, Contrast):  # the ids say it, and prompts of other rows need not travel
        branching = replace(branching, negative_prompt=None, negative_system=None)
    described = [] if branching is None else [branching.to_dict()]
    for one in parts.reweighting:
        assert isinstance(one, CAIF)
        values = {field.name: getattr(one, field.name) for field in fields(one) if field.name != "classifier"}
        described.append({"method": one.name, "classifier": classifier, **values})
    described += [] if constraint is None else [constraint]
    if not described:
        return None
    asked: dict[str, Any] = {GUIDANCE: json.dumps(described)}
    if ids:
        asked[BRANCH_IDS] = [list(row) for row in ids]
    return asked if branching is None and not parts.reweighting else {**asked, EFFECT: 1}


def generate(
    llm: Any,
    tokenizer: Any,
    prompts: Any,
    guidance: Any,
    *,
    max_new_tokens: int,
    system: str | None,
    seed: int | Sequence[int] | None,
    stop: Any,
    do_sample: bool | None,
    options: dict[str, Any],
) -> GenerateResult:
    """What :func:`textguide.generate` does with a ``vllm.LLM``; arguments as there.

    With a seed, row ``i`` draws what a run of its prompt alone with the seed ``seed + i`` draws, with a list of seeds
    with ``seed[i]``.

    Raises:
        ValueError: something that vLLM's engine cannot do; the message names it.
    """
    guidance = as_guidance(guidance)
    config = llm.llm_engine.vllm_config
    adapters = adapters_of(config)
    held = (*models_of(config), *adapters)
    parts, constraint, critic = carried(guidance, held, constraints_of(config), critics_of(config))
    asked = options.pop("adapter", None)
    served = {} if asked is None else {"lora_request": find("adapter", asked, adapters).request(llm.lora_request)}
    _check_classifier(config, parts.reweighting)
    particles = parts.particles
    tokenizer = tokenizer or llm.get_tokenizer()
    canonical = branch_inputs.canonical_prompts(prompts, system, tokenizer)
    ids = [branch_inputs.encode(prompt, tokenizer, f"prompts[{n}]") for n, prompt in enumerate(canonical)]
    branches: list[Any] = []
    if parts.branching is not None:
        branches = branch_inputs.branch_rows(parts.branching, cond=ids, tokenizer=tokenizer, prompts=canonical)
    if constraint and do_sample is None:
        do_sample = True
    include_stop = options.pop("include_stop", True)
    common = _sampling(options, do_sample, stop, max_new_tokens)
    if particles > 1:
        common.setdefault("n", particles)
    ending = Ending(stop=tuple(common["stop"]), limit=max_new_tokens, include_stop=include_stop)
    copies = int(common.get("n", 1))
    if seed is None or isinstance(seed, int):
        seeds = [None if seed is None else seed + row * copies for row in range(len(ids))]
    else:
        seeds = [int(one) for one in seed]
        if len(seeds) != len(ids):
            raise ValueError(f"seed= has {len(seeds)} seeds and there are {len(ids)} prompts; give one for each")
    params = []
    for row in range(len(ids)):
        extra = arguments_of(parts, [rows[row] for rows in branches], constraint, ours_of(config).get("classifier"))
        one = seeds[row]
        own = None if one is None else one % LARGEST_SEED
        params.append(llm.sampling_params(**common, seed=own, extra_args={**(extra or {}), **critic} or None))
    try:
        outputs = llm.generate([{"prompt_token_ids": row} for row in ids], params, use_tqdm=False, **served)
    except Exception as error:
        if type(error).__name__ == "VLLMValidationError":  # what the check of the requests found
            raise ValueError(str(error)) from None
        raise
    guided = parts.branching is not None or bool(parts.reweighting)
    weighed = _weights(outputs, particles) if constraint is not None else {}
    together = particles > 1 or bool(critic)
    result = _result(outputs, tokenizer, len(branches) if guided else None, weighed, together, ending)
    warn_if_none(result.effect, guidance)
    return result


def _check_classifier(config: Any, reweighting: Sequence[Any]) -> None:
    """Refuse reweighting by another classifier than the engine's."""
    engines = classifier_of(config)
    for asked in reweighting:
        its = named(asked.classifier) if isinstance(asked.classifier, str) else asked.classifier
        if engines is None or its is not engines:
            raise ValueError(
                f"guidance={asked!r}: the engine has {'no classifier' if engines is None else 'another classifier'}; "
                "name it when the engine starts, textguide.vllm_engine(model, classifier=…)"
            )
        engines.index(asked.target)


def _sampling(options: dict[str, Any], do_sample: bool | None, stop: Any, longest: int) -> dict[str, Any]:
    options = {name: value for name, value in options.items() if value is not None}
    for name in options:
        if name not in OPTIONS:
            raise ValueError(f"{name}= has no counterpart in vLLM; those that have are {', '.join(OPTIONS)}")
    common = {OPTIONS[name]: value for name, value in options.items()}
    if do_sample is None:
        do_sample = any(name in common for name in ("temperature", "top_k", "top_p", "min_p"))
    if not do_sample:
        for name in ("temperature", "top_k", "top_p", "min_p"):
            common.pop(name, None)
        common["temperature"] = 0.0
    stops = [stop] if isinstance(stop, str) else list(stop or [])
    return {**common, "max_tokens": longest, "stop": stops, "include_stop_str_in_output": True, "logprobs": 0}


def _result(
    outputs: Sequence[Any],
    tokenizer: Any,
    branches: int | None,
    weighed: dict[str, Any],
    together: bool,
    ending: Ending,
) -> GenerateResult:
    """The result of answers.

    Args:
        branches: of the guidance; None without one.
        weighed: the fields about weights.
        together: whether the texts were written together.
    """
    rows = [(output, one) for output in outputs for one in output.outputs]
    deaths = weighed.get("deaths") or [None] * len(rows)
    # A particle that was given up stays as it was; a text by itself gets an end token then, which is none of its own.
    tokens = [
        list(one.token_ids)[: None if together or death in (None, STOPPED) else -1]
        for (_, one), death in zip(rows, deaths, strict=True)
    ]
    longest = max(len(row) for row in tokens)
    named = [getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id")]
    pad = next((token for token in named if token is not None), 0)
    prompts, _ = pad_left([list(output.prompt_token_ids) for output, _ in rows], "cpu", pad)
    written = torch.tensor([row + [pad] * (longest - len(row)) for row in tokens], dtype=torch.long)
    log_probs = torch.zeros(len(rows), longest)
    for n, (_, one) in enumerate(rows):
        for k, token in enumerate(tokens[n]):
            log_probs[n, k] = one.logprobs[k][token].logprob
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
    ended = [one.finish_reason == "stop" and getattr(one, "stop_reason", None) is None for _, one in rows]
    return GenerateResult(
        texts=[ending.shown(text) for text in texts],
        finish_reasons=[
            "error"
            if one.finish_reason == "error"
            else "eos"
            if is_end and death is None
            else ending.reason(*row, death)
            for (_, one), is_end, death, row in zip(rows, ended, deaths, zip(tokens, texts, strict=True), strict=True)
        ],
        sequences=torch.cat([prompts, written.view(len(rows), longest)], dim=1),
        new_tokens=tokens,
        log_likelihood=log_probs.sum(-1),
        log_probs=log_probs,
        effect=Effect()
        if branches is None
        else join([_effect(one, branches) for output in outputs for one in _runs(output)]),
        **weighed,
    )


def _weights(outputs: Sequence[Any], particles: int) -> dict[str, Any]:
    """The fields of a result that are about weights."""
    reports = [one for output in outputs for one in _reports(output)]
    weights = [-math.inf if one.get("log_weight") is None else one["log_weight"] for one in reports]
    log_weights = torch.tensor(weights, dtype=torch.float64)
    populations = log_weights.view(-1, particles)
    deaths = [one.get("death") for one in reports]
    return {
        "log_weights": log_weights,
        "log_evidence": log_evidence(populations),
        "ess": effective_sample_size(populations),
        "finished": torch.tensor([death is None for death in deaths]) & (log_weights > -math.inf),
        "deaths": deaths,
        "constraint_calls": sum(one.get("constraint_calls", 0) for output in outputs for one in _runs(output)),
        "particles": particles,
    }


def _reports(output: Any) -> list[Mapping[str, Any]]:
    """The report of each answer."""
    return [report or {} for report in reports_of(output.kv_transfer_params)] or [{} for _ in output.outputs]


def _runs(output: Any) -> list[Mapping[str, Any]]:
    """Likewise, but one for all texts that were written together, each of which has the numbers of all."""
    reports = _reports(output)
    return reports[:1] if reports and "log_weights" in reports[0] else reports


def _effect(report: Mapping[str, Any], branches: int) -> Effect:
    mean, largest = report.get("mean_kl", 0.0), report.get("max_kl", 0.0)
    return Effect(
        mean_kl=math.inf if mean is None else mean,
        max_kl=math.inf if largest is None else largest,
        top_changed=report.get("top_changed", 0.0),
        guided_steps=report.get("guided_steps", 0),
        unguided_steps=report.get("unguided_steps", 0),
        extra_passes=report.get("branched_steps", 0) * branches,
    )
