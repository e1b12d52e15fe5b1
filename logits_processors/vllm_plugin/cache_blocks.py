"""Blocks of vLLM's cache: how many are free, how many a request needs, and which are kept for a step.

Knows no vLLM but the names of its cache manager.
"""

from __future__ import annotations

from typing import Any


class CacheBlocks:
    """The cache of an engine.

    Args:
        scheduler: vLLM's, whose cache manager is read.
    """

    def __init__(self, scheduler: Any) -> None:
        self._manager = scheduler.kv_cache_manager
        self._max_model_len = scheduler.max_model_len
        self._block_size = min(group.kv_cache_spec.block_size for group in scheduler.kv_cache_config.kv_cache_groups)
        self._pinned: list[Any] = []

    @property
    def free(self) -> int:
        """Blocks that no request uses."""
        return int(self._manager.block_pool.get_num_free_blocks())

    @property
    def total(self) -> int:
        """Blocks that requests can use at all, those that vLLM keeps free for admissions left out."""
        # The pool's first block is a placeholder for positions without a block.
        return int(self._manager.block_pool.num_gpu_blocks - 1 - self.reserve)

    @property
    def reserve(self) -> int:
        """Blocks that have to stay free when a request is admitted."""
        return int(self._manager.watermark_blocks)

    def needed(self, request: Any, start: int, end: int) -> int:
        """New blocks that a request needs to go from ``start`` tokens in the cache to ``end``."""
        count = self._manager.coordinator.get_num_blocks_to_allocate(
            request_id=request.request_id,
            num_tokens=min(end, self._max_model_len),
            new_computed_blocks=self._manager.empty_kv_cache_blocks.blocks,
            num_encoder_tokens=0,
            total_computed_tokens=start,
            num_local_computed_tokens=start,
            num_tokens_main_model=end,
            prefill_end=max(request.num_prompt_tokens, request.num_tokens - 1),
        )
        return int(count)

    def needed_to_admit(self, request: Any) -> int:
        """New blocks that a waiting request needs for all of its tokens."""
        return self.needed(request, 0, request.num_tokens)

    def fits_last_block(self, n_computed: int, n_tokens: int) -> bool:
        """Whether a request can read ``n_tokens`` more without a new block; cheaper than :meth:`needed`."""
        return n_tokens <= -n_computed % self._block_size

    def unread(self, request: Any) -> int:
        """Tokens of a waiting request that the prefix cache does not have."""
        return int(request.num_tokens - self._manager.get_computed_blocks(request)[1])

    def pin(self, request: Any) -> None:
        """Keep the cached prefix of a waiting request until :meth:`unpin`.

        Otherwise requests that are served earlier in the same step could evict it.
        """
        for blocks in self._manager.get_computed_blocks(request)[0].blocks:
            self._manager.block_pool.touch(blocks)
            self._pinned += blocks

    def unpin(self) -> None:
        """Release all pinned prefixes."""
        self._manager.block_pool.free_blocks(reversed(self._pinned))
        self._pinned = []
