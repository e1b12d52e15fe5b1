"""Settings of an engine that guidance does not work with, and why. Knows no vLLM but the names of its settings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from .further_models import models_of

TESTED = ("0.32.0",)
"""The vLLM versions that the tests ran with."""
OPTIONS: dict[str, tuple[Any, str]] = {
    "speculative_config": (
        None,
        "vLLM's own drafts are made without guidance; pass it to textguide serve or textguide.vllm_engine, which guess "
        "by n-grams",
    ),
    "diffusion_config": (
        None,
        "a masked diffusion model fills positions in its own sampler, which calls no logits processor; guide it with "
        "textguide.diffusion",
    ),
    "kv_transfer_config": (None, "branch requests cannot be moved between engines; leave it out"),
    "prefill_context_parallel_size": (
        1,
        "prompts in parts on several devices were not tested; set it to 1 and tensor_parallel_size higher",
    ),
    "decode_context_parallel_size": (
        1,
        "caches in parts on several devices were not tested; set it to 1",
    ),
    "enable_dbo": (False, "two half batches could separate the requests of a group; leave it off"),
    "ubatch_size": (0, "small batches could separate the requests of a group; leave it at 0"),
    "enable_batch_sharded_sampling": (
        False,
        "each device would sample a part of the rows, and the rows of a group have to meet on one; leave it off",
    ),
    "logprobs_mode": (
        "raw_logprobs",
        "log-probabilities of guided requests are those of the guided distribution; leave it at raw_logprobs",
    ),
    "scheduling_policy": ("fcfs", "groups are kept in order of arrival; use fcfs"),
}
"""Options of vLLM's engines that exclude guidance: the one value that does not, and why, with the remedy."""


def check_options(options: Mapping[str, Any]) -> None:
    """Raise a ``ValueError`` that names an option with which an engine cannot guide, before it starts.

    Args:
        options: of ``vllm.LLM``.
    """
    for name, (allowed, reason) in OPTIONS.items():
        if options.get(name) not in (None, allowed):
            raise ValueError(f"{name}={options[name]!r} does not work with guidance: {reason}")


def refuse(config: Any, scheduler: Any) -> None:
    """Raise a ``ValueError`` that names a setting with which an engine cannot guide, or was not tested.

    Args:
        config: vLLM's ``VllmConfig``.
        scheduler: the engine's scheduler, which knows the size of its cache.
    """
    _check_settings(config)
    _check_parallelism(config)
    _check_places(config, scheduler)
    _check_model(config)
    if not any("GuidedLogitsProcessor" in str(one) for one in config.model_config.logits_processors or ()):
        raise ValueError(
            "the guided scheduler needs the guided processor: --logits-processors "
            "textguide.logits_processors.vllm_plugin.processor:GuidedLogitsProcessor"
        )
    _check_cache(config, scheduler)
    _warn_if_untested()


def _check_settings(config: Any) -> None:
    """:func:`check_options` for the configuration, which has the defaults of vLLM and of the model."""
    parallel = config.parallel_config
    is_diffusion = getattr(config, "diffusion_config", None) or config.model_config.is_diffusion
    check_options(
        {
            "speculative_config": config.speculative_config,
            "diffusion_config": is_diffusion or None,
            "kv_transfer_config": config.kv_transfer_config,
            "prefill_context_parallel_size": parallel.prefill_context_parallel_size,
            "decode_context_parallel_size": parallel.decode_context_parallel_size,
            "enable_dbo": parallel.enable_dbo,
            "ubatch_size": parallel.ubatch_size,
            "enable_batch_sharded_sampling": parallel.enable_batch_sharded_sampling,
            "logprobs_mode": config.model_config.logprobs_mode,
            "scheduling_policy": config.scheduler_config.policy,
        }
    )


def _check_parallelism(config: Any) -> None:
    has_stages = config.parallel_config.pipeline_parallel_size > 1
    if config.scheduler_config.async_scheduling and has_stages:
        raise _refusal(
            "async_scheduling",
            "with pipeline stages, steps that are scheduled ahead were not tested; pass --no-async-scheduling",
        )
    # vLLM tells the engines of a dense model nothing of one another, so this is a mixture of experts.
    if config.parallel_config.data_parallel_size > 1:
        raise _refusal(
            "data_parallel_size",
            "the engines of a mixture of experts run in lockstep, which was not tested; run one server per device "
            "behind a load balancer",
        )
    if models_of(config) and has_stages:
        raise _refusal(
            "pipeline_parallel_size",
            "further models cannot be cut into stages; set it to 1 and tensor_parallel_size higher",
        )


def _check_places(config: Any, scheduler: Any) -> None:
    if not config.scheduler_config.enable_chunked_prefill:
        raise _refusal(
            "enable_chunked_prefill",
            "branch requests have to read their prompts up to the last token but one; leave it on",
        )
    if scheduler.max_num_active_reqs < 2:
        raise _refusal("max_num_seqs", "a guided request takes two places or more; set it to 2 or more")
    if scheduler.max_num_scheduled_tokens < 2:
        raise _refusal("max_num_batched_tokens", "a guided request takes two tokens per step; set it to 2 or more")


def _check_model(config: Any) -> None:
    if config.model_config.runner_type != "generate":
        raise _refusal("runner", "only models that generate can be guided")
    if config.model_config.is_encoder_decoder:
        raise _refusal("model", "encoder-decoders were not tested")
    if models_of(config) and config.use_v2_model_runner:
        raise _refusal("models", "further models were not tested with Model Runner V2; set VLLM_USE_V2_MODEL_RUNNER=0")


def _check_cache(config: Any, scheduler: Any) -> None:
    # One block is a placeholder for positions without a block.
    room = (scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1) * scheduler.block_size
    longest = config.model_config.max_model_len
    if room < 2 * longest:
        raise ValueError(
            f"max_model_len={longest}: a guided request needs the cache of two sequences of that length, and there is "
            f"room for {room} tokens; set max_model_len to {room // 2} or less, or give the cache more memory"
        )


def _warn_if_untested() -> None:
    import vllm

    if vllm.__version__.split("+")[0] not in TESTED:
        warnings.warn(
            f"textguide's guidance was tested with vLLM {', '.join(TESTED)}, and this is {vllm.__version__}; "
            "its scheduler's interface is not a stable one",
            stacklevel=3,
        )


def _refusal(name: str, reason: str) -> ValueError:
    return ValueError(f"{name} does not work with guidance: {reason}")
