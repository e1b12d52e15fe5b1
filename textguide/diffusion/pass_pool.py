"""Runs in several threads whose forward passes are joined: each fills its own canvas with its own guidance and seed."""

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

from .denoisers import Denoiser

LONGEST_WAIT = 0.05
"""Seconds that a pass waits for runs that are between two passes, at most."""


@dataclass
class _Job:
    ids: Tensor
    attention: Tensor
    done: threading.Event = field(default_factory=threading.Event)
    logits: Tensor | None = None
    error: BaseException | None = None


class PassPool:
    """One denoiser for several runs at once.

    A pass starts when every run that goes on waits for one, or after as long as the last pass took. Rows of different
    lengths are padded on the right and masked, as in any batch, so that a row reads what it reads alone.

    Args:
        model: the denoiser; it is not used by anybody else meanwhile.
        most_rows: rows of a pass, at most; a single run may have more.

    Attributes:
        passes: joint passes so far.
        joined: passes of runs that were read in them.
    """

    def __init__(self, model: Denoiser, most_rows: int = 256) -> None:
        self.model, self.most_rows = model, most_rows
        self.passes = self.joined = 0
        self._changed = threading.Condition()
        self._alone = threading.Lock()
        self._jobs: list[_Job] = []
        self._runs = 0
        self._took = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="diffusion-passes", daemon=True)
        self._thread.start()

    @contextmanager
    def run(self, attend: Callable[[], None] | None = None) -> Iterator[Denoiser]:
        """The denoiser for one run, in the thread that enters it.

        Args:
            attend: called in front of every pass; what it raises ends the run.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("the pool is closed")
            self._runs += 1
        try:
            given = {f.name: getattr(self.model, f.name) for f in fields(Denoiser) if f.init}
            yield _Pooled(**given, pool=self, attend=attend)
        finally:
            with self._changed:
                self._runs -= 1
                self._changed.notify_all()

    def read(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Logits (B, L, V) as the model gives them, from a pass that others share."""
        job = _Job(ids, attention)
        with self._changed:
            if self._closed:
                raise RuntimeError("the pool is closed")
            self._jobs.append(job)
            self._changed.notify_all()
        job.done.wait()
        if job.error is not None:
            raise job.error
        assert job.logits is not None
        return job.logits

    def alone(self, forward: Callable[[], Any]) -> Any:
        """What ``forward`` gives, while nothing else runs: passes with a cache."""
        with self._alone:
            return forward()

    def close(self) -> None:
        """End the thread; runs that wait for a pass get an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            jobs = self._next()
            if jobs is None:
                return
            try:
                begun = time.monotonic()
                with self._alone:
                    self._pass(jobs)
                self._took = time.monotonic() - begun
            except BaseException as error:  # it belongs to the runs
                for job in jobs:
                    job.error = error
            for job in jobs:
                job.done.set()

    def _next(self) -> list[_Job] | None:
        """The jobs of the next pass; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            patience = min(LONGEST_WAIT, self._took)
            self._changed.wait_for(lambda: len(self._jobs) >= self._runs or self._closed, timeout=patience)
            if self._closed:
                for job in self._jobs:
                    job.error = RuntimeError("the server stops")
                    job.done.set()
                return None
            rows, count = 0, 0
            for job in self._jobs:
                rows += len(job.ids)
                if count and rows > self.most_rows:
                    break
                count += 1
            jobs, self._jobs = self._jobs[:count], self._jobs[count:]
            return jobs

    def _pass(self, jobs: list[_Job]) -> None:
        length = max(job.ids.shape[1] for job in jobs)
        pad = torch.nn.functional.pad
        ids = torch.cat([pad(job.ids, (0, length - job.ids.shape[1]), value=self.model.pad_id) for job in jobs])
        attention = torch.cat([pad(job.attention, (0, length - job.attention.shape[1])) for job in jobs])
        logits = self.model.forward(ids, attention, {}).logits
        for job, part in zip(jobs, logits.split([len(job.ids) for job in jobs]), strict=True):
            job.logits = part[:, : job.ids.shape[1]]
        self.passes, self.joined = self.passes + 1, self.joined + len(jobs)


@dataclass
class _Pooled(Denoiser):
    """The denoiser of one run, whose passes the pool joins."""

    pool: Any = None
    attend: Any = None

    def forward(self, ids: Tensor, attention: Tensor, extra: dict[str, Any]) -> Any:
        if self.attend is not None:
            self.attend()
        if extra or not self.as_mask:
            return self.pool.alone(lambda: super(_Pooled, self).forward(ids, attention, extra))
        return SimpleNamespace(logits=self.pool.read(ids, attention))
