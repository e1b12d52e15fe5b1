"""The call of transformers' ``generate`` that is running.

``generate`` does not pass all of its arguments to a custom loop: ``streamer=``, ``assistant_model=``,
``negative_prompt_ids=`` and ``synced_gpus=``, which would be ignored silently. A logits processor cannot distinguish
one call from the next, although a second call whose prompt continues the text of the first one needs a new state, and
does not know which tokens are padding. Transformers 5 has no public API for these, so the call is read from the stack,
in this one place, and nothing is written to it. ``tests/engine/test_caller.py`` fails if transformers renames one of
the variables.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

LOCALS = (
    "streamer",
    "assistant_model",
    "negative_prompt_ids",
    "synced_gpus",
    "batch_size",
    "kwargs",
    "prepared_logits_processor",
    "model_kwargs",
)
"""Local variables of ``GenerationMixin.generate`` that are read."""


@dataclass(frozen=True)
class GenerateCall:
    """Arguments and state of one running ``generate`` call.

    Args:
        streamer: it has received the prompt already.
        assistant_model, negative_prompt_ids, synced_gpus: as passed to ``generate``.
        prompts: number of prompts; None if the call has not counted them yet.
        options: the further keyword arguments of the call.
        processors: the list of logits processors that ``generate`` made for this call; None if it has not made one yet.
        attention_mask: of the prompts, (rows, L); None if they have no padding.
    """

    streamer: Any = None
    assistant_model: Any = None
    negative_prompt_ids: Any = None
    synced_gpus: Any = None
    prompts: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    processors: Any = None
    attention_mask: Tensor | None = None


def running_generate_call() -> GenerateCall | None:
    """The innermost ``generate`` call that is running in this thread, or None if there is none."""
    from transformers import GenerationMixin

    code = inspect.unwrap(GenerationMixin.generate).__code__
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return None
    values = frame.f_locals
    model_kwargs = values.get("model_kwargs") or {}
    return GenerateCall(
        streamer=values.get("streamer"),
        assistant_model=values.get("assistant_model"),
        negative_prompt_ids=values.get("negative_prompt_ids"),
        synced_gpus=values.get("synced_gpus"),
        prompts=values.get("batch_size"),
        options=values.get("kwargs") or {},
        processors=values.get("prepared_logits_processor"),
        attention_mask=model_kwargs.get("attention_mask"),
    )
