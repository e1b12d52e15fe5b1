"""What a sweep takes, before it starts: passes, tokens and hours."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textguide import tasks as task_room
from textguide.guidance import Guidance, as_guidance

from ..lm_eval_models.answering import Memory
from ..results.folder import JOURNAL
from ..results.journal import check_identity, read_journal
from .options import SweepOptions, identity_of, labels_of
from .sweep import evaluate, model_for

STEPS = 4
"""Tokens that the measured batch writes behind its first."""
EVERY = "all"
"""The setting of what one pass does for all of them."""


@dataclass(frozen=True)
class PlannedWork:
    """What is left to do of one task.

    Args:
        task: its name.
        label: the guidance, or ``all`` where one pass serves all of them.
        requests: log-likelihoods or texts, without those that a run in the results folder has.
        kept: those that it has.
        passes: times that a model is called; for texts at most, as if each were as long as it may be.
        tokens: positions that are read or written, over all rows, branches and models; for texts at most.
        hours: on this machine, about: from one batch that was run, whose first tokens stand for all.
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
    said: Callable[[str], None] = lambda line: None,
) -> list[PlannedWork]:
    """What :func:`run_sweep` with these arguments would take.

    The model is loaded, one batch of each task is scored, and one batch of its texts is begun under each setting; the
    rest is in proportion. Nothing is written.

    Args:
        tasks, settings, output, options, model_args: those of :func:`run_sweep`.
        said: is told what is being measured.

    Raises:
        ValueError: an argument has a value that cannot work, or the backend is another; the message names it.
    """
    options, arguments = options or SweepOptions(), dict(model_args or {})
    if "backend" in arguments:
        raise ValueError(
            f"a plan measures models that read left to right in transformers, and backend={arguments['backend']!r} is "
            "another; try a few items with limit= there"
        )
    settings = [as_guidance(setting) for setting in settings]
    labels = labels_of(settings)
    specs, manager = task_room.resolve(list(tasks), options.data, options.repeats)
    kept = _kept(output, identity_of(tasks, settings, options, arguments))
    lm = model_for(settings, options.seed, arguments, specs, manager)
    asked = _Requests(lm)
    with asked.collected():
        evaluate(lm, specs, manager, options, predict_only=True)
    plan = []
    for task, requests in asked.scored.items():
        lm.use_memo(kept)
        keys, missing = lm.missing_scores(requests)
        said(f"{task}: {len(missing)} log-likelihoods to compute")
        left = list({key: one for key, one in zip(keys, requests, strict=True) if key in missing}.values())
        plan.append(_scores(lm, task, left, len(set(keys)) - len(missing)))
    for task, requests in asked.written.items():
        for number, label in enumerate(labels):
            lm.current = number
            lm.use_memo(kept)
            left = [requests[n] for n in lm.answers(requests).missing]
            said(f"{task}, {label}: {len(left)} texts to write")
            plan.append(_texts(lm, task, label, left, len(requests) - len(left)))
    return plan


def _kept(output: Path | None, identity: dict[str, Any]) -> Memory:
    """The answers of the run that goes on in ``output``.

    Raises:
        ValueError: another run is there.
    """
    memory = Memory()
    file = None if output is None else output / JOURNAL
    if file is not None and file.exists() and b"\n" in file.read_bytes():
        found, memory.done = read_journal(file)
        check_identity(file.parent, found, identity)
    return memory


@dataclass
class _Requests:
    """What the tasks ask of ``lm``: requests by task, log-likelihoods in token ids."""

    lm: Any
    scored: dict[str, list[Any]] = field(default_factory=dict)
    written: dict[str, list[Any]] = field(default_factory=dict)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Note requests and answer them with nothing."""
        lm, names = self.lm, ("loglikelihood", "loglikelihood_rolling", "generate_until")
        scores = {name: getattr(lm, name) for name in names[:2]}

        def score(kind: str, requests: list[Any], **_: Any) -> list[Any]:
            answers = []
            for task in dict.fromkeys(request.task_name for request in requests):
                several = self.scored.setdefault(task, [])
                lm._loglikelihood_tokens = lambda some, several=several, **_: [several.append(one) or (0.0, False)
                                                                              for one in some]  # fmt: skip
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
            for name in (*names, "_loglikelihood_tokens"):
                lm.__dict__.pop(name, None)


@dataclass
class _Passes:
    """The calls of models while something was measured.

    Attributes:
        started: when each began, in seconds.
        tokens: how many positions each read.
    """

    started: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    ended: float = 0.0

    def over(self, first: int, last: int | None = None) -> tuple[int, int, float]:
        """Passes, tokens and seconds of the passes from ``first`` to ``last``."""
        starts = [*self.started, self.ended]
        stop = len(self.tokens) if last is None else last
        return stop - first, sum(self.tokens[first:stop]), starts[stop] - starts[first]


@contextmanager
def _watched(lm: Any) -> Iterator[_Passes]:
    found = _Passes()

    def note(_: Any, args: Any, kwargs: Any) -> None:
        found.started.append(time.perf_counter())
        found.tokens.append(int((kwargs["input_ids"] if "input_ids" in kwargs else args[0]).numel()))

    models = {id(model): model for model in (lm.model, *lm.models.values())}
    hooks = [model.register_forward_pre_hook(note, with_kwargs=True) for model in models.values()]
    try:
        yield found
    finally:
        found.ended = time.perf_counter()
        for hook in hooks:
            hook.remove()


def _scores(lm: Any, task: str, requests: list[Any], kept: int) -> PlannedWork:
    if not requests:
        return PlannedWork(task, EVERY, 0, kept, 0, 0, 0.0)
    size = min(len(requests), lm.at_once()[0])
    middle = (len(requests) - size) // 2  # of the order of length, in which batches are made
    sample = sorted(requests, key=_length)[middle : middle + size]
    for _ in range(2):  # the first time tries the model out
        lm.use_memo(Memory())
        with _watched(lm) as found:
            lm._loglikelihood_tokens(sample, disable_tqdm=True)
    passes, tokens, seconds = found.over(0)
    share = sum(map(_length, requests)) / sum(map(_length, sample))
    batches = -(-len(requests) // size)
    return PlannedWork(
        task, EVERY, len(requests), kept, passes * batches, round(tokens * share), seconds * share / 3600
    )


def _length(request: Any) -> int:
    return len(request[1]) + len(request[2])


def _texts(lm: Any, task: str, label: str, requests: list[Any], kept: int) -> PlannedWork:
    if not requests:
        return PlannedWork(task, label, 0, kept, 0, 0, 0.0)
    rows, chunk = lm.at_once()
    middle = max(0, len(requests) - rows) // 2  # of the order of length, in which they are written
    sample = requests[middle : middle + rows]
    found = []
    # Two texts try the model out; then a batch up to its first tokens, and again with some tokens behind them.
    for size, tokens in ((2, 2), (rows, 1), (rows, 1 + STEPS)):
        lm.use_memo(Memory())
        with _watched(lm) as passes:
            lm.generate_until([_begun(request, tokens) for request in sample[:size]], disable_tqdm=True)
        found.append(passes)
    first = len(found[1].tokens)
    reading, steps = found[2].over(0, first), found[2].over(first)
    lengths = [_most(lm, request) for request in requests]
    batches = sum(-(-len(requests[start : start + chunk]) // rows) for start in range(0, len(requests), chunk))
    share = len(requests) / len(sample)
    longest = sum(lengths) / len(lengths)
    calls = batches * (reading[0] + steps[0] / STEPS * longest)
    positions, seconds = (share * (reading[n] + steps[n] / STEPS * longest) for n in (1, 2))
    return PlannedWork(task, label, len(requests), kept, round(calls), round(positions), seconds / 3600)


def _most(lm: Any, request: Any) -> int:
    """The most tokens of a text."""
    return int(request.args[1].get("max_gen_toks", lm.max_gen_toks))


def _begun(request: Any, tokens: int) -> Any:
    """A request for the first tokens of a text, which does not end before them."""
    begun = copy.copy(request)
    options = {name: value for name, value in request.args[1].items() if name != "min_length"}
    begun.arguments = (request.args[0], {**options, "until": [], "max_gen_toks": tokens, "min_new_tokens": tokens})
    return begun
