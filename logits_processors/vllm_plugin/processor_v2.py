"""The guided distribution inside vLLM's second model runner (Model Runner V2, the default if Triton is installed).

Written against the interface of ``vllm.v1.worker.gpu.sample.logits_processor``: no ``update_state``, state per request
index, and a batch that is described by a context. That runner derives its own noise from the seed and the position in
the sequence, which two prompts of different lengths do not share. It does not matter, since the token is drawn here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .batch_rows import Indices
from .channel import Outbox
from .combination import GuidedRow, guide, messages
from .processor_v1 import EngineResources, member_of


class SecondRunnerProcessor:
    """Combines the rows of guided requests with those of their branch requests; other rows are not touched.

    Args:
        vllm_config: vLLM's ``VllmConfig``.
        req_states: vLLM's buffers with the tokens of every request index, which are only read.
    """

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        self.states = req_states
        self.indices: Indices[GuidedRow | None] = Indices()
        self.outbox = Outbox()
        self.resources = EngineResources.of(vllm_config)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Note that a request got the index ``req_idx``; whether it belongs to a group."""
        member = member_of(
            sampling_params, lambda: self._prompt(req_idx), lambda: self._written(req_idx), self.resources
        )
        self.indices.add(req_idx, member)
        return member is not None

    def apply_staged_writes(self) -> None:
        """Do nothing: no writes are staged."""

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        """Write guided distributions into the rows of groups, in place. Without speculation a request has one row."""
        if not self.indices.members:
            return logits
        indices = [int(index) for index in ctx.idx_mapping_np]
        groups = self.indices.groups(indices)
        if not groups:
            return logits
        positions = []
        for group in groups:
            # The token that is drawn now comes after `seq_lens` tokens.
            length = int(ctx.seq_lens_upper_bound_np[group.row])
            n_prompt = int(self.states.prompt_len.np[indices[group.row]])
            positions.append(group.member.payload.n_written + length - n_prompt)
        self.outbox.put(messages(groups, positions, guide(logits, groups, positions)))
        return logits

    def _prompt(self, index: int) -> list[int]:
        """Token ids of the prompt of a request index."""
        return self._tokens(index)[: int(self.states.prompt_len.np[index])]

    def _written(self, index: int) -> list[int]:
        """Token ids that were written for a request index."""
        return self._tokens(index)[int(self.states.prompt_len.np[index]) :]

    def _tokens(self, index: int) -> list[int]:
        total = int(self.states.total_len.gpu[index])
        tokens: list[int] = self.states.all_token_ids.gpu[index, :total].tolist()
        return tokens
