"""Where a generated text of the harness ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import StoppingCriteriaList, StopStringCriteria

from textguide.engine.custom_generate import GuidedDecoding


def own_criteria(decoding: GuidedDecoding, tokenizer: Any, stop: list[str]) -> Callable[..., Any]:
    """``decoding`` with every text ended by its own ``stop``.

    lm-eval's criteria know one row a prompt, and let all rows write on until the last has come to its end.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        theirs = [one for one in kwargs["stopping_criteria"] if not type(one).__module__.startswith("lm_eval.")]
        ours = [StopStringCriteria(tokenizer, stop)] if stop else []
        kwargs["stopping_criteria"] = StoppingCriteriaList([*theirs, *ours])
        return decoding(*args, **kwargs)

    return run
