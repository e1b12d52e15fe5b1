"""``textguide.vllm_engine``: a ``vllm.LLM`` with guidance, and ``textguide.generate`` on it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch

from textguide.engine import branch_inputs
from textguide.engine.results import Ending, GenerateResult, warn_of_empty_texts
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
from .constraint_arguments import awrs_as_json, critic_name
from .constraints import CRITIC
from .engine_priors import named_prior
from .extras import constraints_of, critics_of, ours_of, priors_of
from .further_models import models_of
from .options import prepared
from .reports import reports_of
from .request_guidance import BRANCH_IDS, GUIDANCE, check_guidance
from .reweighting import classifier_of, named
from .startup import starting

# Generation options of transformers that mean the same in vLLM, with their names there.
OPTIONS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "n",
}
DRAWS = ("temperature", "top_k", "top_p", "min_p")
"""Options that only matter if tokens are drawn."""
LARGEST_SEED = 2**63


def vllm_engine(
    model: str = bundled.NAME,
    *,
    classifier: str | None = None,
    constraints: Mapping[str, str] | None = None,
    critics: Mapping[str, str] | None = None,
    priors: Mapping[str, str] | None = None,
    models: Mapping[str, str] | None = None,
    adapters: Mapping[str, str] | None = None,
    **options: Any,
) -> Any:
    """Start a ``vllm.LLM`` with guidance, for ``textguide.generate`` and for ``extra_args`` of sampling parameters.

    Args:
        model: as for :func:`textguide.load`: the bundled model's name, a folder, a GGUF file, or a name on a model hub.
        classifier: the name of a classifier, for requests with :class:`textguide.CAIF`: ``sentiment``, a saved folder…
        constraints: for requests with :class:`textguide.AWRS`, those that do not travel with a request: by name, the
            text that defines each, such as ``{"even": "python:MODULE:NAME"}``.
        critics: likewise the functions from a text to a log potential that weigh the texts of such requests.
        priors: files of token priors by name, for requests with :class:`textguide.TokenPrior`, which name them and no
            files; the bundled ones have their own names.
        models: for methods that need another model, such as :class:`textguide.guidance.ContrastiveDecoding`: further
            models by name, each as ``model``. They share the served model's tokens, and read every token of every
            request.
        adapters: folders of LoRA adapters by name, which such methods can use as well; ``base`` is the model without
            one. ``textguide.generate(…, adapter=NAME)`` decodes with one.
        **options: those of ``vllm.LLM``. The scheduler and the logits processor are set. Steps are only scheduled ahead
            with ``async_scheduling=True``.

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
        model,
        classifier=classifier,
        constraints=constraints,
        critics=critics,
        priors=priors,
        models=models,
        adapters=adapters,
        **options,
    )
    # vLLM imports it with the first request, which would be too late for its check (`validation.py`).
    importlib.import_module(".processor", __package__)
    with starting():
        llm = LLM(**options)
    for adapter in adapters_of(llm.llm_engine.vllm_config).values():
        if adapter.number:
            # An adapter that does not fit is reported now, and not with the first request that names it.
            llm.llm_engine.add_lora(adapter.request(LoRARequest))
    llm.sampling_params = SamplingParams
    llm.lora_request = LoRARequest
    llm.textguide_generate = functools.partial(generate, llm)
    return llm


class Portable(NamedTuple):
    """A guidance as requests carry it.

    Args:
        parts: of the guidance.
        sampling: its AWRS or Feynman–Kac as JSON; None without one.
        critic: the engine's name of its critic; None without one.
    """

    parts: Parts
    sampling: dict[str, Any] | None = None
    critic: str | None = None


def portable(
    guidance: Guidance | None,
    models: Collection[str],
    constraints: Mapping[str, str],
    critics: Mapping[str, str],
    priors: Mapping[str, Mapping[str, Any]],
) -> Portable:
    """A guidance as requests carry it.

    Args:
        guidance: the guidance; None for plain decoding.
        models: names of the further models and of the adapters that the engine has.
        constraints: those that the engine was started with, by name.
        critics: likewise.
        priors: likewise, with file and fingerprint.

    Raises:
        ValueError: a part of it cannot run inside vLLM, or does not travel with a request; the message names it.
    """
    check_guidance(guidance, models)
    parts = split(guidance)
    parts = replace(parts, branching=named_prior(parts.branching, priors))
    if parts.sampling is None:
        return Portable(parts)
    if isinstance(parts.sampling, FeynmanKac):
        return Portable(parts, parts.sampling.to_dict())
    assert isinstance(parts.sampling, AWRS)
    return Portable(parts, awrs_as_json(parts.sampling, constraints), critic_name(parts.sampling, critics))


def extra_args_of(guidance: Portable, ids: Sequence[Sequence[int]], classifier: str | None) -> dict[str, Any] | None:
    """``extra_args`` of a request; None if it needs no guidance.

    Args:
        guidance: of the request.
        ids: token ids of every branch.
        classifier: the name of the engine's classifier.
    """
    branching: Any = guidance.parts.branching
    if isinstance(branching, Contrast):
        # The ids are sent instead, and prompts of other rows need not travel.
        branching = replace(branching, negative_prompt=None, negative_system=None)
    described = [] if branching is None else [branching.to_dict()]
    described += [_caif(part, classifier) for part in guidance.parts.reweighting]
    if guidance.sampling is not None:
        described.append(guidance.sampling)
    extra: dict[str, Any] = {}
    if described:
        extra[GUIDANCE] = json.dumps(described)
    if described and ids:
        extra[BRANCH_IDS] = [list(row) for row in ids]
    if branching is not None or guidance.parts.reweighting:
        extra[EFFECT] = 1
    if guidance.critic is not None:
        extra[CRITIC] = guidance.critic
    return extra or None


def _caif(part: Any, classifier: str | None) -> dict[str, Any]:
    """A CAIF as JSON, with the engine's name of its classifier."""
    assert isinstance(part, CAIF)
    values = {field.name: getattr(part, field.name) for field in fields(part) if field.name != "classifier"}
    return {"method": part.name, "classifier": classifier, **values}


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
    """:func:`textguide.generate` for a ``vllm.LLM``; arguments as there.

    With a seed, row ``i`` draws what a run of its prompt alone with the seed ``seed + i`` draws; with a list of seeds,
    ``seed[i]``.

    Raises:
        ValueError: something that vLLM's engine cannot do; the message names it.
    """
    guidance = as_guidance(guidance)
    config = llm.llm_engine.vllm_config
    adapters = adapters_of(config)
    carried = portable(
        guidance, (*models_of(config), *adapters), constraints_of(config), critics_of(config), priors_of(config)
    )
    parts = carried.parts
    adapter = options.pop("adapter", None)
    lora = {}
    if adapter is not None:
        lora["lora_request"] = find("adapter", adapter, adapters).request(llm.lora_request)
    _check_classifier(config, parts.reweighting)
    tokenizer = tokenizer or llm.get_tokenizer()
    canonical = branch_inputs.canonical_prompts(prompts, system, tokenizer)
    ids = [branch_inputs.encode(prompt, tokenizer, f"prompts[{n}]") for n, prompt in enumerate(canonical)]
    branches: list[Any] = []
    if parts.branching is not None:
        branches = branch_inputs.branch_rows(parts.branching, cond=ids, tokenizer=tokenizer, prompts=canonical)
    if carried.sampling and do_sample is None:
        do_sample = True
    include_stop = options.pop("include_stop", True)
    common = _sampling(options, do_sample, stop, max_new_tokens)
    if parts.particles > 1:
        common.setdefault("n", parts.particles)
    seeds = _seeds(seed, len(ids), int(common.get("n", 1)))
    classifier = ours_of(config).get("classifier")
    params = []
    for row, one in enumerate(seeds):
        extra = extra_args_of(carried, [rows[row] for rows in branches], classifier)
        params.append(llm.sampling_params(**common, seed=one, extra_args=extra))
    outputs = _run(llm, ids, params, lora)
    has_effect = parts.branching is not None or bool(parts.reweighting)
    result = _result(
        outputs,
        tokenizer,
        branches=len(branches) if has_effect else None,
        weights=_weights(outputs, parts.particles) if carried.sampling is not None else {},
        is_population=parts.particles > 1 or carried.critic is not None,
        ending=Ending(stop=tuple(common["stop"]), limit=max_new_tokens, include_stop=include_stop),
    )
    if carried.sampling is not None:
        drawn = sum(map(len, result.new_tokens))
        result.effect = replace(result.effect, sampler=str(carried.sampling["method"]), sampled_steps=drawn)
    warn_if_none(result.effect, guidance)
    return result


def _check_classifier(config: Any, reweighting: Sequence[Any]) -> None:
    """Refuse reweighting by another classifier than the engine's."""
    available = classifier_of(config)
    for caif in reweighting:
        classifier = named(caif.classifier) if isinstance(caif.classifier, str) else caif.classifier
        if available is None or classifier is not available:
            raise ValueError(
                f"guidance={caif}: the engine has {'no classifier' if available is None else 'another classifier'}; "
                "name it when the engine starts, textguide.vllm_engine(model, classifier=…)"
            )
        available.index(caif.target)


def _sampling(options: dict[str, Any], do_sample: bool | None, stop: Any, longest: int) -> dict[str, Any]:
    """vLLM's sampling parameters, from generation options of transformers."""
    common = {}
    for name, value in options.items():
        if value is not None:
            if name not in OPTIONS:
                raise ValueError(f"{name}= has no counterpart in vLLM; those that have one are {', '.join(OPTIONS)}")
            common[OPTIONS[name]] = value
    if do_sample is None:
        do_sample = any(name in common for name in DRAWS)
    if not do_sample:
        for name in DRAWS:
            common.pop(name, None)
        common["temperature"] = 0.0
    stops = [stop] if isinstance(stop, str) else list(stop or [])
    return {**common, "max_tokens": longest, "stop": stops, "include_stop_str_in_output": True, "logprobs": 0}


def _seeds(seed: int | Sequence[int] | None, count: int, copies: int) -> list[int | None]:
    """The seed of each of ``count`` prompts; vLLM counts it up over the ``copies`` of a prompt."""
    if seed is None:
        return [None] * count
    if isinstance(seed, int):
        return [(seed + row * copies) % LARGEST_SEED for row in range(count)]
    seeds = [int(one) % LARGEST_SEED for one in seed]
    if len(seeds) != count:
        raise ValueError(f"seed= has {len(seeds)} seeds and there are {count} prompts; give one for each")
    return list(seeds)


def _run(llm: Any, ids: Sequence[Sequence[int]], params: Sequence[Any], lora: dict[str, Any]) -> list[Any]:
    """vLLM's outputs for prompts of token ids."""
    try:
        outputs: list[Any] = llm.generate([{"prompt_token_ids": row} for row in ids], params, use_tqdm=False, **lora)
    except Exception as error:
        # vLLM wraps the errors of the check of requests. Its class is not imported, so that tests need no vLLM.
        if any(one.__name__ == "VLLMValidationError" for one in type(error).__mro__):
            raise ValueError(str(error)) from None
        raise
    return outputs


# -- results ---------------------------------------------------------------------------------------------------------


def _result(
    outputs: Sequence[Any],
    tokenizer: Any,
    *,
    branches: int | None,
    weights: dict[str, Any],
    is_population: bool,
    ending: Ending,
) -> GenerateResult:
    """The result of vLLM's outputs.

    Args:
        outputs: one per prompt.
        tokenizer: of the model.
        branches: number of branches of the guidance; None without guidance.
        weights: the fields about weights.
        is_population: whether the texts of a prompt were written together.
        ending: what ends a text.
    """
    rows = [(output, answer) for output in outputs for answer in output.outputs]
    deaths = weights.get("deaths") or [None] * len(rows)
    tokens = []
    for (_, answer), death in zip(rows, deaths, strict=True):
        row = list(answer.token_ids)
        if not is_population and death not in (None, STOPPED):
            # A text that was given up gets an end token to end it in vLLM; a particle stays as it was.
            del row[-1:]
        tokens.append(row)
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
    reasons = []
    for (_, answer), row, text, death in zip(rows, tokens, texts, deaths, strict=True):
        reasons.append(_finish_reason(answer, row, text, death, ending))
    warn_of_empty_texts(texts, ending)
    log_probs = _log_probs([answer for _, answer in rows], tokens)
    effect = Effect()
    if branches is not None:
        effect = join([_effect(report, branches) for output in outputs for report in _reports_of_runs(output)])
    return GenerateResult(
        texts=[ending.shown(text) for text in texts],
        finish_reasons=reasons,
        sequences=_sequences([list(output.prompt_token_ids) for output, _ in rows], tokens, tokenizer),
        new_tokens=tokens,
        log_likelihood=log_probs.sum(-1),
        log_probs=log_probs,
        effect=effect,
        rows_per_prompt=len(rows) // len(outputs),
        **weights,
    )


def _log_probs(answers: Sequence[Any], tokens: Sequence[Sequence[int]]) -> torch.Tensor:
    """Log-probabilities of new tokens, (B, new), 0 after the end of a row."""
    log_probs = torch.zeros(len(answers), max(map(len, tokens)))
    for n, answer in enumerate(answers):
        for k, token in enumerate(tokens[n]):
            log_probs[n, k] = answer.logprobs[k][token].logprob
    return log_probs


def _finish_reason(answer: Any, tokens: list[int], text: str, death: str | None, ending: Ending) -> str:
    if answer.finish_reason == "error":
        return "error"
    # vLLM gives the text or token that stopped a request, and none for its end token.
    has_end = answer.finish_reason == "stop" and getattr(answer, "stop_reason", None) is None
    if has_end and death is None:
        return "eos"
    return ending.reason(tokens, text, death)


def _sequences(prompts: list[list[int]], tokens: list[list[int]], tokenizer: Any) -> torch.Tensor:
    """Prompts, padded on the left, with the new tokens, padded on the right."""
    named = [getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id")]
    pad = next((token for token in named if token is not None), 0)
    longest = max(map(len, tokens))
    padded, _ = pad_left(prompts, "cpu", pad)
    written = torch.tensor([row + [pad] * (longest - len(row)) for row in tokens], dtype=torch.long)
    return torch.cat([padded, written.view(len(tokens), longest)], dim=1)


def _weights(outputs: Sequence[Any], particles: int) -> dict[str, Any]:
    """The fields of a result that are about weights."""
    reports = [report for output in outputs for report in _reports(output)]
    weights = [-math.inf if report.get("log_weight") is None else report["log_weight"] for report in reports]
    log_weights = torch.tensor(weights, dtype=torch.float64)
    populations = log_weights.view(-1, particles)
    deaths = [report.get("death") for report in reports]
    calls = [report.get("constraint_calls", 0) for output in outputs for report in _reports_of_runs(output)]
    return {
        "log_weights": log_weights,
        "log_evidence": log_evidence(populations),
        "ess": effective_sample_size(populations),
        "ancestors": _ancestors(reports, particles),
        "finished": torch.tensor([death is None for death in deaths]) & (log_weights > -math.inf),
        "deaths": deaths,
        "constraint_calls": sum(calls),
        "particles": particles,
    }


def _ancestors(reports: Sequence[Mapping[str, Any]], particles: int) -> torch.Tensor:
    """The number of surviving first particles of each population; a text that was written alone is its own one."""
    firsts = reports[::particles]
    return torch.tensor([report.get("ancestors", int(report.get("log_weight") is not None)) for report in firsts])


def _reports(output: Any) -> list[Mapping[str, Any]]:
    """The report of each answer."""
    return [report or {} for report in reports_of(output.kv_transfer_params)] or [{} for _ in output.outputs]


def _reports_of_runs(output: Any) -> list[Mapping[str, Any]]:
    """The report of each answer, or a single one for texts that were written together: theirs is about all of them."""
    reports = _reports(output)
    return reports[:1] if reports and "log_weights" in reports[0] else reports


def _effect(report: Mapping[str, Any], branches: int) -> Effect:
    mean = report.get("mean_kl", 0.0)
    largest = report.get("max_kl", 0.0)
    return Effect(
        # JSON has no infinite numbers.
        mean_kl=math.inf if mean is None else mean,
        max_kl=math.inf if largest is None else largest,
        top_changed=report.get("top_changed", 0.0),
        guided_steps=report.get("guided_steps", 0),
        unguided_steps=report.get("unguided_steps", 0),
        extra_passes=report.get("branched_steps", 0) * branches,
    )
