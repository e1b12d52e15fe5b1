"""The guided distribution inside vLLM's second model runner (Model Runner V2, the default where Triton is).

Written against the interface of ``vllm.v1.worker.gpu.sample.logits_processor``: no ``update_state``, state per
request index, and a batch described by a context. That runner keys its own noise by seed and position in the sequence,
which two prompts of unequal length do not share; the token is drawn here, so it does not matter.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .batch_rows import Indices
from .channel import Outbox
from .combination import Drawing, guide, messages
from .processor_v1 import Aids, member_of


class SecondRunnerProcessor:
    """Combines the rows of guided requests with those of their branch requests; other rows keep their bits.

    Args:
        vllm_config: names the engine.
        req_states: vLLM's buffers with the tokens behind every request index, which are only read.
    """

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        self.states = req_states
        self.indices: Indices[Drawing | None] = Indices()
        self.outbox = Outbox()
        self.aids = Aids.of(vllm_config)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """A request took the index ``req_idx``; whether it is one of a group."""
        prompt, written = (lambda: self._tokens(req_idx, 0)), (lambda: self._tokens(req_idx, 1))
        member = member_of(sampling_params, prompt, written, self.aids)
        self.indices.add(req_idx, member)
        return member is not None

    def apply_staged_writes(self) -> None:
        """Nothing is staged."""

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        """Guided distributions in the rows of groups, in place. Without speculation a request has one row."""
        if not self.indices.members:
            return logits
        indices = [int(index) for index in ctx.idx_mapping_np]
        groups = self.indices.groups(indices)
        if groups:
            # The token that is drawn now stands behind `seq_lens` tokens.
            lengths = ctx.seq_lens_upper_bound_np
            began = [group.member.payload.began for group in groups]
            written = [int(lengths[row]) - int(self.states.prompt_len.np[indices[row]]) for row, _, _ in groups]
            positions = [before + count for before, count in zip(began, written, strict=True)]
            self.outbox.put(messages(groups, positions, guide(logits, groups, positions)))
        return logits

    def _tokens(self, index: int, part: int) -> list[int]:
        """Token ids of the prompt (part 0) or of what was written (part 1) behind a request index."""
        prompt, total = int(self.states.prompt_len.np[index]), int(self.states.total_len.gpu[index])
        tokens: list[int] = self.states.all_token_ids.gpu[index, :total].tolist()
        return tokens[:prompt] if part == 0 else tokens[prompt:]
