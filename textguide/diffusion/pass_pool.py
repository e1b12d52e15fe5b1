"""Runs in several threads share forward passes: each fills its own canvas with its own guidance and seed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .denoisers import Denoiser

LONGEST_WAIT = 0.05
"""Seconds that a pass waits at most for runs that are between two passes."""


@dataclass
class _Job:
    """One pass of one run: its input, and its logits or error when it is done."""

    ids: Tensor
    attention: Tensor
    done: threading.Event = field(default_factory=threading.Event)
    logits: Tensor | None = None
    error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.done.set()


class PassPool:
    """One denoiser for several runs at the same time.

    A pass starts when every run that is in progress waits for one, or after as long as the last pass took. Rows of
    different lengths are padded on the right and masked, as in any batch, so that a row reads what it reads alone.

    Args:
        model: the denoiser; nothing else uses it in the meantime.
        most_rows: rows of a pass at most; a single run may have more.

    Attributes:
        passes: shared passes so far.
        joined: passes of runs that were read in them.
    """

    def __init__(self, model: Denoiser, most_rows: int = 256) -> None:
        self.model = model
        self.most_rows = most_rows
        self.passes = 0
        self.joined = 0
        self._changed = threading.Condition()
        self._model_lock = threading.Lock()
        self._jobs: list[_Job] = []
        self._runs = 0
        self._last_duration = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="diffusion-passes", daemon=True)
        self._thread.start()

    @contextmanager
    def run(self, before_pass: Callable[[], None] | None = None) -> Iterator[Denoiser]:
        """A denoiser for one run, in the thread that enters the context.

        Args:
            before_pass: called before every pass; an exception that it raises ends the run.
        """
        with self._changed:
            self._refuse_if_closed()
            self._runs += 1
        try:
            values = {f.name: getattr(self.model, f.name) for f in fields(Denoiser) if f.init}
            yield _PooledDenoiser(**values, pool=self, before_pass=before_pass)
        finally:
            with self._changed:
                self._runs -= 1
                self._changed.notify_all()

    def read(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Logits (B, L, V) as the model places them, from a pass shared with other runs."""
        job = _Job(ids, attention)
        with self._changed:
            self._refuse_if_closed()
            self._jobs.append(job)
            self._changed.notify_all()
        job.done.wait()
        if job.error is not None:
            raise job.error
        assert job.logits is not None
        return job.logits

    def exclusive(self, forward: Callable[[], Any]) -> Any:
        """The result of ``forward``, called while no other pass runs; for passes with a cache."""
        with self._model_lock:
            return forward()

    def close(self) -> None:
        """End the thread; runs that wait for a pass get an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError("the pool is closed")

    def _work(self) -> None:
        while True:
            jobs = self._next_jobs()
            if jobs is None:
                return
            try:
                begun = time.monotonic()
                with self._model_lock:
                    self._pass(jobs)
                self._last_duration = time.monotonic() - begun
            except BaseException as error:  # raised again in the threads of the runs
                for job in jobs:
                    job.fail(error)
            for job in jobs:
                job.done.set()

    def _next_jobs(self) -> list[_Job] | None:
        """The jobs of the next pass; None if the pool is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            patience = min(LONGEST_WAIT, self._last_duration)
            self._changed.wait_for(lambda: len(self._jobs) >= self._runs or self._closed, timeout=patience)
            if self._closed:
                for job in self._jobs:
                    job.fail(RuntimeError("the server stops"))
                return None
            rows = 0
            count = 0
            for job in self._jobs:
                rows += len(job.ids)
                if count and rows > self.most_rows:
                    break
                count += 1
            jobs = self._jobs[:count]
            self._jobs = self._jobs[count:]
            return jobs

    def _pass(self, jobs: list[_Job]) -> None:
        length = max(job.ids.shape[1] for job in jobs)
        ids = torch.cat([pad(job.ids, (0, length - job.ids.shape[1]), value=self.model.pad_id) for job in jobs])
        attention = torch.cat([pad(job.attention, (0, length - job.attention.shape[1])) for job in jobs])
        logits = self.model.forward(ids, attention, {}).logits
        for job, part in zip(jobs, logits.split([len(job.ids) for job in jobs]), strict=True):
            job.logits = part[:, : job.ids.shape[1]]
        self.passes += 1
        self.joined += len(jobs)


@dataclass
class _PooledDenoiser(Denoiser):
    """The denoiser of one run, whose passes the pool joins with those of others."""

    pool: Any = None
    before_pass: Callable[[], None] | None = None

    def forward(self, ids: Tensor, attention: Tensor, extra: dict[str, Any]) -> Any:
        if self.before_pass is not None:
            self.before_pass()
        if extra or not self.as_mask:  # a cache belongs to one run; without a mask rows cannot be padded
            return self.pool.exclusive(lambda: super(_PooledDenoiser, self).forward(ids, attention, extra))
        return SimpleNamespace(logits=self.pool.read(ids, attention))
