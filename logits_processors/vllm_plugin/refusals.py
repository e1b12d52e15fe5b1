"""What a guided vLLM engine refuses at start, and why. Knows no vLLM but the names of its settings."""

from __future__ import annotations

import warnings
from typing import Any

from .admission import TESTED
from .further_models import models_of


def refuse(config: Any, scheduler: Any) -> None:
    """Raise a ``ValueError`` that names the setting where an engine cannot guide, or was never tried at it.

    Args:
        config: vLLM's ``VllmConfig``.
        scheduler: the engine's scheduler, which knows the size of its cache.
    """
    parallel, scheduling = config.parallel_config, config.scheduler_config
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        if getattr(parallel, name) > 1:
            raise ValueError(
                f"{name}={getattr(parallel, name)}: guidance was not tested on more than one device; set it to 1, "
                "or run one engine a device behind a load balancer"
            )
    problems = {
        "async_scheduling": (
            scheduling.async_scheduling,
            "a step would be scheduled before the requests of a group are known to agree; pass --no-async-scheduling",
        ),
        "speculative_config": (
            config.speculative_config is not None,
            "drafts are made without guidance; leave speculative decoding off",
        ),
        "kv_transfer_config": (
            config.kv_transfer_config is not None,
            "branch requests cannot be moved between engines",
        ),
        "enable_chunked_prefill": (
            not scheduling.enable_chunked_prefill,
            "branch requests have to read their prompts up to the last token but one; leave it on",
        ),
        "scheduling_policy": (scheduling.policy != "fcfs", "groups are kept in order of arrival; use fcfs"),
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
        "logprobs_mode": (
            config.model_config.logprobs_mode != "raw_logprobs",
            "log-probabilities of guided requests are those of the guided distribution; leave it at raw_logprobs",
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
