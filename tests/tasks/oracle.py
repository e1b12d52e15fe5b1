"""A model without weights: it answers right, or wrong, as the test asks, from the rows of the task itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import lm_eval
from lm_eval.api.model import LM

from textguide import tasks


def right_generation(doc: dict[str, Any]) -> str:
    if "canonical_solution" in doc:
        return doc["canonical_solution"]
    if "aliases" in doc:
        return doc["aliases"][-1]
    answer = doc["answer"].rpartition("####")[2].strip()
    return f"It follows from what is given. The answer is {answer}."


def wrong_generation(doc: dict[str, Any]) -> str:
    if "canonical_solution" in doc:
        return "    return None  # passed\n"
    answer = doc.get("answer", "")
    if re.fullmatch(r"\([A-D]\)", answer):
        return f"The answer is ({'BCDA'['ABCD'.index(answer[1])]})."
    return "The answer is 123456789."


def is_right_choice(doc: dict[str, Any], index: int) -> bool:
    if "gold" in doc:
        return doc["gold"] == index
    if "answer" in doc:
        return "ABCD"[index] == doc["answer"][1]
    return True  # LAMBADA asks for one continuation only


class Oracle(LM):
    """Answers right or wrong, and keeps the requests it saw in memory."""

    def __init__(self, right: bool, generation: Callable[[dict[str, Any], int], str] | None = None) -> None:
        super().__init__()
        self.right = right
        self.generation = generation
        self.prompts: list[tuple[Any, ...]] = []
        self._asked: dict[int, int] = {}

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        self.prompts += [request.args for request in requests]
        hits = [is_right_choice(request.doc, request.idx) == self.right for request in requests]
        return [(0.0, True) if hit else (-100.0, False) for hit in hits]

    def generate_until(self, requests: list[Any]) -> list[str]:
        self.prompts += [request.args for request in requests]
        answers = []
        for request in requests:
            turn = self._asked.get(id(request), 0)
            self._asked[id(request)] = turn + 1
            if self.generation is not None:
                answers.append(self.generation(request.doc, turn))
            else:
                answers.append((right_generation if self.right else wrong_generation)(request.doc))
        return answers

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError


def run(name: str, lm: LM, data: str | None = None, repeats: int | None = None, **options: Any) -> dict[str, Any]:
    """The results of one task, keyed by metric and filter."""
    specs, manager = tasks.resolve([name], data, repeats)
    options = {
        "limit": 2,
        "bootstrap_iters": 0,
        "log_samples": False,
        "confirm_run_unsafe_code": True,
        **options,
    }
    if not tasks.is_protected(name):
        return lm_eval.simple_evaluate(model=lm, tasks=specs, task_manager=manager, **options)
    try:
        return lm_eval.simple_evaluate(model=lm, tasks=specs, task_manager=manager, **options)
    except ValueError as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        # pytest shows the arguments of the frames of a traceback, and one of them is the document.
        raise AssertionError(type(error).__name__) from None


def scores(results: dict[str, Any], name: str) -> dict[str, float]:
    return {
        key: value
        for key, value in results["results"][name].items()
        if "," in key and "stderr" not in key and key != "alias"
    }
