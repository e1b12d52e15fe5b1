"""What benchmarks share: seconds, memory, and what the figures depend on."""

from __future__ import annotations

import platform
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import textguide


def seconds(call: Callable[[], None], device: torch.device) -> float:
    """Wall time of ``call``, waiting for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class peak_memory:
    """The memory that a block needs beyond what was in use before it: on a GPU exact, on a CPU sampled."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.megabytes = 0.0

    def __enter__(self) -> peak_memory:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.before = resident()
            self.highest = self.before
            self.done = threading.Event()
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.01):
            self.highest = max(self.highest, resident())

    def __exit__(self, *_: Any) -> None:
        if self.cuda:
            self.megabytes = (torch.cuda.max_memory_allocated() - self.before) / 1e6
        else:
            self.done.set()
            self.thread.join()
            self.megabytes = (self.highest - self.before) / 1e6


def resident() -> int:
    """Resident memory of this process in bytes."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine(model: Any) -> dict[str, Any]:
    """What the figures depend on."""
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return {
        "device": device,
        "processor": platform.machine(),
        "dtype": str(model.dtype),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "textguide": textguide.__version__,
    }
