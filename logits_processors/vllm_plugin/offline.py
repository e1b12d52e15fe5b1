"""``vllm.LLM`` as ``textguide.vllm_engine`` returns it."""

from __future__ import annotations

from typing import Any

from vllm import LLM, SamplingParams

from . import engine


class GuidedLLM(LLM):
    """A ``vllm.LLM`` with guidance on, which ``textguide.generate`` knows how to drive."""

    sampling_params = SamplingParams

    def textguide_generate(self, *args: Any, **kwargs: Any) -> Any:
        """:func:`textguide.generate` on this engine."""
        return engine.generate(self, *args, **kwargs)
