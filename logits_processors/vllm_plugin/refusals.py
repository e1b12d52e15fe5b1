"""What a guided vLLM engine refuses at start, and why. Knows no vLLM but the names of its settings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from .further_models import models_of
from .validation import TESTED

OPTIONS: dict[str, tuple[Any, str]] = {
    "speculative_config": (
        None,
        "vLLM's own drafts are made without guidance; give it to textguide serve or textguide.vllm_engine, which guess "
        "by n-grams",
    ),
    "diffusion_config": (
        None,
        "a masked diffusion model fills positions in its own sampler, which asks no processor; guide it with "
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
    "enable_dbo": (False, "two half batches could part the requests of a group; leave it off"),
    "ubatch_size": (0, "small batches could part the requests of a group; leave it at 0"),
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
    """Raise a ``ValueError`` that names the option where an engine with these could not guide: before it starts.

    Args:
        options: of ``vllm.LLM``.
    """
    for name, (only, reason) in OPTIONS.items():
        if options.get(name) not in (None, only):
            raise ValueError(f"{name}={options[name]!r} does not work with guidance: {reason}")


def refuse(config: Any, scheduler: Any) -> None:
    """Raise a ``ValueError`` that names the setting where an engine cannot guide, or was never tried at it.

    Args:
        config: vLLM's ``VllmConfig``.
        scheduler: the engine's scheduler, which knows the size of its cache.
    """
    parallel, scheduling = config.parallel_config, config.scheduler_config
    settings = {
        "speculative_config": config.speculative_config,
        "diffusion_config": (getattr(config, "diffusion_config", None) or config.model_config.is_diffusion) or None,
        "kv_transfer_config": config.kv_transfer_config,
        "prefill_context_parallel_size": parallel.prefill_context_parallel_size,
        "decode_context_parallel_size": parallel.decode_context_parallel_size,
        "enable_dbo": parallel.enable_dbo,
        "ubatch_size": parallel.ubatch_size,
        "enable_batch_sharded_sampling": parallel.enable_batch_sharded_sampling,
        "logprobs_mode": config.model_config.logprobs_mode,
        "scheduling_policy": scheduling.policy,
    }
    check_options(settings)
    several = parallel.pipeline_parallel_size > 1
    problems = {
        "async_scheduling": (
            scheduling.async_scheduling and several,
            "with pipeline stages, steps that are scheduled ahead were not tested; pass --no-async-scheduling",
        ),
        # A dense model's engines are not told of one another.
        "data_parallel_size": (
            parallel.data_parallel_size > 1,
            "the engines of a mixture of experts keep step with one another, which was not tested; run one server a "
            "device behind a load balancer",
        ),
        "enable_chunked_prefill": (
            not scheduling.enable_chunked_prefill,
            "branch requests have to read their prompts up to the last token but one; leave it on",
        ),
        "max_num_seqs": (
            scheduler.max_num_active_reqs < 2,
            "a guided request takes two places or more; set it to 2 or more",
        ),
        "max_num_batched_tokens": (
            scheduler.max_num_scheduled_tokens < 2,
            "a guided request takes two tokens a step; set it to 2 or more",
        ),
        "runner": (config.model_config.runner_type != "generate", "there is nothing to guide"),
        "model": (config.model_config.is_encoder_decoder, "encoder-decoders were not tested"),
        "models": (
            bool(models_of(config)) and bool(config.use_v2_model_runner),
            "further models were not tested with Model Runner V2; set VLLM_USE_V2_MODEL_RUNNER=0",
        ),
        "pipeline_parallel_size": (
            bool(models_of(config)) and several,
            "further models cannot be cut into stages; set it to 1 and tensor_parallel_size higher",
        ),
    }
    for name, (is_wrong, reason) in problems.items():
        if is_wrong:
            raise ValueError(f"{name} does not work with guidance: {reason}")
    if not any("GuidedLogitsProcessor" in str(one) for one in config.model_config.logits_processors or ()):
        raise ValueError(
            "the guided scheduler needs the guided processor: --logits-processors "
            "textguide.logits_processors.vllm_plugin.processor:GuidedLogitsProcessor"
        )
    room = (scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1) * scheduler.block_size
    longest = config.model_config.max_model_len
    if room < 2 * longest:
        raise ValueError(
            f"max_model_len={longest}: a guided request needs the cache of two sequences of that length, and there is "
            f"room for {room} tokens; set max_model_len to {room // 2} or less, or give the cache more memory"
        )
    import vllm

    if vllm.__version__.split("+")[0] not in TESTED:
        warnings.warn(
            f"textguide's guidance was tested with vLLM {', '.join(TESTED)}, and this is {vllm.__version__}; "
            "its scheduler's interface is not a stable one",
            stacklevel=2,
        )
