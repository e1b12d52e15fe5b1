"""The stopping criteria of texts that lm-eval requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import StoppingCriteriaList, StopStringCriteria

from textguide.engine.custom_generate import GuidedDecoding


def own_criteria(decoding: GuidedDecoding, tokenizer: Any, stop: list[str]) -> Callable[..., Any]:
    """``decoding`` with stopping criteria that end each text at its own stop text.

    lm-eval's criteria expect one row per prompt, and let all rows continue until the last one has ended.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        criteria = []
        for criterion in kwargs["stopping_criteria"]:
            if not type(criterion).__module__.startswith("lm_eval."):
                criteria.append(criterion)
        if stop:
            criteria.append(StopStringCriteria(tokenizer, stop))
        kwargs["stopping_criteria"] = StoppingCriteriaList(criteria)
        return decoding(*args, **kwargs)

    return run
