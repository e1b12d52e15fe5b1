"""The harness of the benchmarks: contestants take turns, and their times become a table and a JSON file.

A benchmark is its contestants and little else::

    arguments = timing.parser(__doc__, repeats=5).parse_args()
    times = timing.compare({"plain": plain, "guided": guided}, arguments.repeats, model.device)
    rows = [{"method": name, "ms": one.milliseconds} for name, one in times.items()]
    timing.show(rows, {"method": "{method}", "ms": "{ms:.1f}"})
    timing.finish(arguments, model, rows=rows)
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import platform
import resource
import statistics
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table

import textguide
from textguide.support.files import write_json

Name = TypeVar("Name", bound=Hashable)
CPU = torch.device("cpu")


def parser(doc: str | None, *, model: str | None = "smollm2", repeats: int | None = None) -> argparse.ArgumentParser:
    """An argument parser with the options that benchmarks share.

    Args:
        doc: the docstring of the script.
        model: the default of ``--model``; None adds neither it nor ``--device`` and ``--dtype``.
        repeats: the default of ``--repeats``; None leaves the option out.
    """
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if model is not None:
        options.add_argument("--model", default=model, help="a name, folder or GGUF file [%(default)s]")
        options.add_argument("--device", help="cpu or cuda [cuda if there is one]")
        options.add_argument("--dtype", help="such as bfloat16 [as textguide.load chooses]")
    if repeats is not None:
        options.add_argument("--repeats", "--rounds", type=int, default=repeats, help="rounds [%(default)s]")
    options.add_argument("--threads", type=int, help="torch threads [all]")
    options.add_argument("--json", "--out", type=Path, metavar="FILE", help="write the figures there")
    return options


def load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The model and tokenizer that the shared options name, without transformers' progress bars and notes."""
    quiet(arguments)
    return textguide.load(arguments.model, device=arguments.device, dtype=arguments.dtype)


def quiet(arguments: argparse.Namespace) -> None:
    """Apply ``--threads`` and silence transformers."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass
class Measurement:
    """What the calls of one contestant took, one entry per round.

    Args:
        seconds: wall time.
        processor_seconds: processor time of this process, over all threads; other work on the machine disturbs it less.
        megabytes: the most memory that a call needed beyond what was in use before it.
        results: what the calls returned.
    """

    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    megabytes: float = 0.0
    results: list[Any] = field(default_factory=list)

    @property
    def milliseconds(self) -> float:
        """The median of the wall times."""
        return 1e3 * statistics.median(self.seconds)

    def ratio(self, base: Measurement) -> float:
        """The median of the ratios to ``base`` within each round."""
        return ratio(self.seconds, base.seconds)

    def run(self, call: Callable[[], Any], device: torch.device = CPU, memory: bool = False) -> None:
        """Call the contestant once and record it."""
        with PeakMemory(device, memory) as peak:
            wait_for(device)
            processor = time.process_time()
            start = time.perf_counter()
            result = call()
            wait_for(device)
            self.seconds.append(time.perf_counter() - start)
            self.processor_seconds.append(time.process_time() - processor)
        self.megabytes = max(self.megabytes, peak.megabytes)
        self.results.append(result)


def compare(
    contestants: Mapping[Name, Callable[[], Any]],
    repeats: int,
    device: torch.device = CPU,
    *,
    warmup: int = 1,
    memory: bool = False,
    title: str = "",
) -> dict[Name, Measurement]:
    """Let contestants take turns, so that other work on the machine disturbs all of them the same.

    Args:
        contestants: calls without arguments, by name.
        repeats: rounds; each calls every contestant once.
        device: the device to wait for before a clock is read.
        warmup: rounds before those that are measured.
        memory: measure the peak memory of each call too.
        title: shown next to the progress bar.
    """
    for _ in range(warmup):
        for call in contestants.values():
            call()
    measurements = {name: Measurement() for name in contestants}
    for _ in progress(range(repeats), title):
        for name, call in contestants.items():
            measurements[name].run(call, device, memory)
    return measurements


def seconds(call: Callable[[], Any], device: torch.device = CPU) -> float:
    """Wall time of one call."""
    measurement = Measurement()
    measurement.run(call, device)
    return measurement.seconds[0]


def ratio(values: Iterable[float], base: Iterable[float]) -> float:
    """The median of the ratios of values that were measured next to each other."""
    return statistics.median(value / other for value, other in zip(values, base, strict=True))


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def progress(items: Sequence[Any], title: str = "") -> Iterable[Any]:
    """The items, with a progress bar on standard error that disappears at the end."""
    return track(items, description=title, transient=True, console=Console(stderr=True))


class PeakMemory:
    """The memory that a block needs beyond what was in use before it: exact on a GPU, sampled on a CPU."""

    def __init__(self, device: torch.device, measured: bool = True) -> None:
        self.cuda = device.type == "cuda"
        self.measured = measured
        self.megabytes = 0.0

    def __enter__(self) -> PeakMemory:
        if self.measured and self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        elif self.measured:
            gc.collect()
            if platform.libc_ver()[0] == "glibc":  # it keeps freed memory, which the next call would get for nothing
                ctypes.CDLL(None).malloc_trim(0)
            self.before = resident_bytes()
            self.highest = self.before
            self.done = threading.Event()
            self.thread = threading.Thread(target=self._sample, daemon=True)
            self.thread.start()
        return self

    def _sample(self) -> None:
        while not self.done.wait(0.01):
            self.highest = max(self.highest, resident_bytes())

    def __exit__(self, *_: object) -> None:
        if self.measured and self.cuda:
            self.megabytes = (torch.cuda.max_memory_allocated() - self.before) / 1e6
        elif self.measured:
            self.done.set()
            self.thread.join()
            self.megabytes = (self.highest - self.before) / 1e6


def resident_bytes() -> int:
    """Resident memory of this process."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # no Linux: the peak so far is the best there is
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# -- reporting ---------------------------------------------------------------------------------------------------------


def machine(model: Any = None, dtype: str | None = None) -> dict[str, Any]:
    """The machine and the versions that figures depend on.

    Args:
        model: the model that was measured; it names the device and the dtype.
        dtype: instead of the model's.
    """
    device = CPU if model is None else model.device
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return {
        "device": name,
        "processor": platform.machine(),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": dtype or str(getattr(model, "dtype", None)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "textguide": textguide.__version__,
    }


def settings(arguments: argparse.Namespace) -> dict[str, str]:
    """The options of a run as text, without the paths of this machine."""
    return {name: str(value) for name, value in vars(arguments).items() if name not in ("json", "data")}


def show(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], title: str = "") -> None:
    """Print rows as a table.

    Args:
        columns: by heading, the format of a cell with the row's fields, such as ``"{ms:.1f}"``. If a row does not have
            the fields of a cell, the cell stays empty.
        title: above the table.
    """
    table = Table(title=title or None)
    for heading, cell in columns.items():
        is_number = ":" in cell or not rows or isinstance(rows[0].get(cell.strip("{}")), (int, float))
        table.add_column(heading, justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*(_formatted(cell, row) for cell in columns.values()))
    Console(width=None if Console().is_terminal else 160).print(table)


def _formatted(cell: str, row: Mapping[str, Any]) -> str:
    try:
        return cell.format_map(row)
    except KeyError:
        return ""


def finish(arguments: argparse.Namespace, model: Any = None, **parts: Any) -> None:
    """Write the machine, the settings and ``parts`` to ``--json``, if it was given."""
    write(arguments.json, {"machine": machine(model), "settings": settings(arguments), **parts})


def write(path: Path | None, report: Any) -> None:
    """Write a report as JSON, unless ``path`` is None."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, report)
