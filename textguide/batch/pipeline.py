"""Spans of rows through a pool of replicas, by Ray Data."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..support.errors import MissingExtraError
from .inputs import Span
from .replica import Replica
from .settings import Settings


class Actor:
    """A replica as Ray Data calls it: once with its settings, then with a span at a time."""

    def __init__(self, **given: Any) -> None:
        self.replica = Replica(**given)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Do one span; arguments and results are columns of one row."""
        spans = [
            Span(int(start), int(stop), str(path), int(first), int(offset))
            for start, stop, path, first, offset in zip(
                batch["start"], batch["stop"], batch["path"], batch["first"], batch["offset"], strict=True
            )
        ]
        done = [self.replica.do(span) for span in spans]
        return {name: [one[name] for one in done] for name in done[0]}


def run(
    settings: Settings,
    spans: Sequence[Span],
    folder: Path,
    fingerprint: str,
    *,
    replicas: int,
    batch_size: int,
    cpus: float,
    gpus: float | None,
    address: str | None,
    done: Callable[[Mapping[str, Any]], Any],
) -> None:
    """Do all spans; arguments as for :func:`textguide.batch.generate`.

    Args:
        done: called with what :meth:`Replica.do` gives, as spans are finished, in any order.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("ray", "batch", "textguide.batch")
    import ray
    import ray.data

    size = min(replicas, len(spans))
    with _ray(address, size, cpus):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
        given = {
            "settings": settings if gpus else settings.sharing_memory(size),
            "batch_size": batch_size,
            "folder": folder.resolve(),
            "fingerprint": fingerprint,
        }
        # One block per span: the spans decide what is written, and not how Ray splits a data set.
        items = [asdict(span) for span in spans]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Actor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=size),
            fn_constructor_kwargs=given,
            num_cpus=cpus,
            num_gpus=gpus or None,
        )
        for row in dataset.iter_rows():
            done(row)


@contextlib.contextmanager
def _ray(address: str | None, replicas: int, cpus: float) -> Iterator[None]:
    """Ray: that of the caller, the cluster at ``address``, or one of this machine alone for as long as it is needed."""
    import ray

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if ray.is_initialized():
        yield
        return
    own: dict[str, Any] = {}
    if not address:
        # Ray refuses more replicas than cores, which run as well, only slower; and its workers have niceness 15 by
        # default, so that they only get the time that other processes leave.
        own = {"num_cpus": max(_cores(), int(replicas * cpus) + 1), "_system_config": {"worker_niceness": 0}}
    ray.init(
        address=address,
        include_dashboard=None if address else False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        configure_logging=True,
        **own,
    )
    try:
        yield
    finally:
        ray.shutdown()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
