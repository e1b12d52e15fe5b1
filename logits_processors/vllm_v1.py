"""The guided law inside vLLM's first model runner.

Opt in by class path: ``--logits-processors textguide.logits_processors.vllm_v1:GuidedLogitsProcessor``, together with
the scheduler of ``vllm_scheduler``. Not registered as an entry point: those load for every model of an installation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from .vllm_admission import validate
from .vllm_channel import Sender
from .vllm_law import Drawing, guide
from .vllm_pairs import Member, Rows
from .vllm_requests import OURS, Request


class GuidedLogitsProcessor(LogitsProcessor):
    """Combines the rows of guided requests with those of their shadows; other rows keep their bits."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse arguments of guidance that cannot work, as a ``ValueError``: HTTP 400."""
        validate(sampling_params)

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.rows: Rows[Drawing] = Rows()
        self.sender = Sender(vllm_config.instance_id)

    def is_argmax_invariant(self) -> bool:
        """It is not: guidance changes the most likely token."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow what was removed, added and moved, in this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.rows.remove(row)
        for row, params, prompt, written in batch_update.added:
            self.rows.add(row, _member(params, prompt, written))
        for source, target, direction in batch_update.moved:
            self.rows.move(source, target, direction == MoveDirectionality.SWAP)

    def apply(self, logits: Tensor) -> Tensor:
        """Guided laws in the rows of pairs, in place."""
        if not self.rows.members:
            return logits
        leaders = self.rows.leaders()
        seen = guide(logits, leaders, [len(member.payload.written()) for _, _, member in leaders])
        told = {
            member.pair: vars(one)
            for (_, _, member), one in zip(leaders, seen, strict=True)
            if one.ids is not None or (one.guided and member.payload.measures)
        }
        if told:
            self.sender.send(told)
        return logits


def _member(params: Any, prompt: list[int] | None, written: list[int]) -> Member[Drawing] | None:
    ours = (params.extra_args or {}).get(OURS) if params is not None else None
    if ours is None or "pair" not in ours:
        return None
    # The list is vLLM's own and grows with the text.
    payload = Drawing(Request.from_dict(ours["request"]), lambda: list(prompt or ()), lambda: written, ours["measures"])
    return Member(ours["pair"], ours["role"], payload)
