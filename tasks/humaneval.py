"""HumanEval (arXiv 2107.03374): pass@k of programs that the model completes, run under limits of our own."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .sandbox import run_program


def complete_programs(resps: Sequence[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The filter of the task: each answer behind the prompt that it completes."""
    return [[doc["prompt"] + answer for answer in answers] for answers, doc in zip(resps, docs, strict=True)]


def estimate_pass_at_k(samples: int, correct: int, k: int) -> float:
    """The unbiased estimate of pass@k, ``1 − C(n − c, k) / C(n, k)`` (equation 1 of the paper).

    Args:
        samples: n, how many programs were drawn.
        correct: c, how many of them passed.
        k: how many tries count as one.

    Raises:
        ValueError: k is below 1 or above n.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k={k!r} needs at least k programs for each problem and there are {samples}; raise repeats=")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def pass_at_k(
    references: Sequence[str],
    predictions: Sequence[Sequence[str]],
    k: Sequence[int] = (1,),
    timeout: float = 5.0,
    memory_mb: int = 1024,
) -> dict[str, float]:
    """The metric of the task: run every program with its tests, and estimate pass@k.

    Args:
        references: for each problem, the source of its tests and the call that starts them.
        predictions: for each problem, the programs.
        k: the values of k.
        timeout: seconds that one program may take.
        memory_mb: the memory one program may take, in MiB.

    Returns:
        ``pass@k`` for each k, averaged over the problems.
    """
    counts = []
    for tests, programs in zip(references, predictions, strict=True):
        sources = [f"{program}\n{tests}" for program in programs]
        with ThreadPoolExecutor(max_workers=min(len(sources), os.cpu_count() or 1)) as pool:
            verdicts = list(pool.map(lambda source: run_program(source, timeout=timeout, memory_mb=memory_mb), sources))
        counts.append((len(verdicts), sum(verdict.passed for verdict in verdicts)))
    return {f"pass@{n}": sum(estimate_pass_at_k(*count, n) for count in counts) / len(counts) for n in k}
