"""The cost of a sweep before it starts: passes, tokens and hours."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textguide.guidance import Guidance

from ..results.folder import JOURNAL
from ..results.journal import Memory, check_identity, read_journal
from .options import SweepOptions
from .sweep import Sweep

STEPS = 4
"""Tokens that the measured batch writes after its first one."""
EVERY = "all"
"""The label of work that one pass does for all settings."""


@dataclass(frozen=True)
class PlannedWork:
    """The work that is left for one task.

    Args:
        task: its name.
        label: the guidance, or ``all`` if one pass serves all settings.
        requests: log-likelihoods or texts, without those that a run in the results folder has.
        kept: those that the run in the results folder has.
        passes: calls of a model; for texts an upper bound, which assumes the largest length for each of them.
        tokens: positions that are read or written, over all rows, branches and models; for texts an upper bound.
        hours: estimate for this machine, from one batch that was measured; a text's first tokens represent the rest.
    """

    task: str
    label: str
    requests: int
    kept: int
    passes: int
    tokens: int
    hours: float


def plan_sweep(
    tasks: Sequence[str],
    settings: Sequence[Guidance | None],
    *,
    output: Path | None = None,
    options: SweepOptions | None = None,
    model_args: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[PlannedWork]:
    """Estimate the cost of :func:`run_sweep` with these arguments.

    The model is loaded, one batch of each task is scored, and the first tokens of one batch of texts are written under
    each setting; the rest is extrapolated. No file is written.

    Args:
        tasks, settings, output, options, model_args: those of :func:`run_sweep`.
        progress: called with a line before each measurement.

    Raises:
        ValueError: an argument is invalid, or the backend is not supported; the message names it.
    """
    backend = (model_args or {}).get("backend")
    if backend is not None:
        raise ValueError(
            f"backend={backend!r} cannot be planned, only models that read from left to right in transformers; try a "
            "few items with limit= instead"
        )
    sweep = Sweep.of(tasks, settings, options, model_args)
    answers = _answers(output, sweep.identity)
    lm = sweep.model()
    requests = _Requests(lm)
    with requests.collected():
        sweep.evaluate(lm, predict_only=True)
    plan = []
    for task, scored in requests.scored.items():
        lm.use_memo(answers)
        keys, missing = lm.missing_scores(scored)
        progress(f"{task}: {len(missing)} log-likelihoods to compute")
        by_key = dict(zip(keys, scored, strict=True))
        left = [request for key, request in by_key.items() if key in missing]
        plan.append(_scores(lm, task, left, len(by_key) - len(missing)))
    for task, written in requests.written.items():
        for number, label in enumerate(sweep.labels):
            lm.current = number
            lm.use_memo(answers)
            left = [written[index] for index in lm.answers(written).missing]
            progress(f"{task}, {label}: {len(left)} texts to write")
            plan.append(_texts(lm, task, label, left, len(written) - len(left)))
    return plan


def _answers(output: Path | None, identity: dict[str, Any]) -> Memory:
    """The answers of an unfinished run in ``output``.

    Raises:
        ValueError: another run is in the folder.
    """
    file = None if output is None else output / JOURNAL
    # A journal without a complete line does not have a header yet.
    if file is None or not file.exists() or b"\n" not in file.read_bytes():
        return Memory()
    written, done = read_journal(file)
    check_identity(file.parent, written, identity)
    return Memory(done)


@dataclass
class _Requests:
    """The requests of the tasks to ``lm``, by task: log-likelihoods (in token ids) and texts."""

    lm: Any
    scored: dict[str, list[Any]] = field(default_factory=dict)
    written: dict[str, list[Any]] = field(default_factory=dict)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Record requests instead of answering them."""
        lm = self.lm
        scores = {name: getattr(lm, name) for name in ("loglikelihood", "loglikelihood_rolling")}

        def score(kind: str, requests: list[Any]) -> list[Any]:
            # HFLM splits the texts into tokens, which needs no model, and passes them to _loglikelihood_tokens.
            answers = []
            for task in dict.fromkeys(request.task_name for request in requests):
                lm._loglikelihood_tokens = self._recorder(task)
                answers += scores[kind]([one for one in requests if one.task_name == task], disable_tqdm=True)
            return answers

        def write(requests: list[Any], **_: Any) -> list[str]:
            for request in requests:
                self.written.setdefault(request.task_name, []).append(request)
            return [""] * len(requests)

        lm.loglikelihood = lambda requests, **_: score("loglikelihood", requests)
        lm.loglikelihood_rolling = lambda requests, **_: score("loglikelihood_rolling", requests)
        lm.generate_until = write
        try:
            yield
        finally:
            for name in (*scores, "generate_until", "_loglikelihood_tokens"):
                lm.__dict__.pop(name, None)

    def _recorder(self, task: str) -> Callable[..., list[tuple[float, bool]]]:
        requests = self.scored.setdefault(task, [])

        def record(batch: list[Any], **_: Any) -> list[tuple[float, bool]]:
            requests.extend(batch)
            return [(0.0, False)] * len(batch)

        return record


@dataclass
class _Passes:
    """The calls of models during a measurement.

    Attributes:
        started: when each call started, in seconds.
        tokens: number of positions that each call read.
        ended: when the measurement ended.
    """

    started: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    ended: float = 0.0

    def cost(self, first: int, last: int | None = None) -> _Cost:
        """The cost of the calls from ``first`` to ``last`` (exclusive)."""
        starts = [*self.started, self.ended]
        stop = len(self.tokens) if last is None else last
        return _Cost(stop - first, sum(self.tokens[first:stop]), starts[stop] - starts[first])


@dataclass(frozen=True)
class _Cost:
    passes: int
    tokens: int
    seconds: float


@contextmanager
def _watched(lm: Any) -> Iterator[_Passes]:
    """Record the calls of all models of ``lm``."""
    passes = _Passes()

    def note(_: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        passes.started.append(time.perf_counter())
        passes.tokens.append(int(ids.numel()))

    models = {id(model): model for model in (lm.model, *lm.models.values())}
    hooks = [model.register_forward_pre_hook(note, with_kwargs=True) for model in models.values()]
    try:
        yield passes
    finally:
        passes.ended = time.perf_counter()
        for hook in hooks:
            hook.remove()


def _scores(lm: Any, task: str, requests: list[Any], done: int) -> PlannedWork:
    if not requests:
        return PlannedWork(task, EVERY, 0, done, 0, 0, 0.0)
    size = min(len(requests), lm.at_once()[0])
    # Batches are made in the order of length, so the middle one is typical.
    middle = (len(requests) - size) // 2
    sample = sorted(requests, key=_length)[middle : middle + size]
    for _ in range(2):  # the first time warms the model up
        lm.use_memo(Memory())
        with _watched(lm) as passes:
            lm._loglikelihood_tokens(sample, disable_tqdm=True)
    cost = passes.cost(0)
    share = sum(map(_length, requests)) / sum(map(_length, sample))
    batches = -(-len(requests) // size)
    hours = cost.seconds * share / 3600
    return PlannedWork(task, EVERY, len(requests), done, cost.passes * batches, round(cost.tokens * share), hours)


def _length(request: Any) -> int:
    _, context, continuation = request
    return len(context) + len(continuation)


def _texts(lm: Any, task: str, label: str, requests: list[Any], done: int) -> PlannedWork:
    if not requests:
        return PlannedWork(task, label, 0, done, 0, 0, 0.0)
    rows, chunk = lm.at_once()
    # Texts are written in the order of the prompts' length, so the middle batch is typical.
    middle = max(0, len(requests) - rows) // 2
    sample = requests[middle : middle + rows]
    _measure(lm, sample[:2], 2)  # warms the model up
    first_tokens = len(_measure(lm, sample, 1).tokens)
    passes = _measure(lm, sample, 1 + STEPS)
    reading = passes.cost(0, first_tokens)
    steps = passes.cost(first_tokens)

    lengths = [int(request.args[1].get("max_gen_toks", lm.max_gen_toks)) for request in requests]
    length = sum(lengths) / len(lengths)
    batches = 0
    for start in range(0, len(requests), chunk):
        batches += -(-len(requests[start : start + chunk]) // rows)
    share = len(requests) / len(sample)
    calls = batches * (reading.passes + steps.passes / STEPS * length)
    tokens = share * (reading.tokens + steps.tokens / STEPS * length)
    seconds = share * (reading.seconds + steps.seconds / STEPS * length)
    return PlannedWork(task, label, len(requests), done, round(calls), round(tokens), seconds / 3600)


def _measure(lm: Any, requests: list[Any], tokens: int) -> _Passes:
    """The calls of models while the first tokens of texts are written."""
    lm.use_memo(Memory())
    with _watched(lm) as passes:
        lm.generate_until([_shortened(request, tokens) for request in requests], disable_tqdm=True)
    return passes


def _shortened(request: Any, tokens: int) -> Any:
    """The request for a text of exactly ``tokens`` tokens."""
    context, options = request.args
    options = {name: value for name, value in options.items() if name != "min_length"}
    shortened = copy.copy(request)
    shortened.arguments = (context, {**options, "until": [], "max_gen_toks": tokens, "min_new_tokens": tokens})
    return shortened
