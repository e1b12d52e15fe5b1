"""A server in its own process, on the loopback, and the figures that it reports about itself."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

COMMON = ("--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1", "--seed", "0", "--disable-uvicorn-access-log")
# `vllm serve` looks for a package called vllm, and the build for CPUs has another name.
VLLM_ENTRY = "from vllm.entrypoints.launchers.api_server.entry import main; main()"
START_SECONDS = 600


@dataclass
class Server:
    """A running server.

    Args:
        url: up to the port.
        process: its first process.
        model: the name that clients use.
        key: the key that clients send; empty if the server requires none.
    """

    url: str
    process: subprocess.Popen[bytes]
    model: str
    key: str = ""

    def metrics(self) -> dict[str, float]:
        """Prometheus' figures, summed over labels."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        request = urllib.request.Request(f"{self.url}/metrics", headers=headers)
        values: dict[str, float] = {}
        with urllib.request.urlopen(request, timeout=30) as answer:
            for line in answer.read().decode().splitlines():
                if line and not line.startswith("#"):
                    name, value = line.rsplit(" ", 1)
                    name = name.split("{")[0]
                    values[name] = values.get(name, 0.0) + float(value)
        return values

    def healthy(self) -> bool:
        """Whether the engine is alive."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=30) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def processes(self) -> list[psutil.Process]:
        """Its first process and all that were started from it; empty after the end."""
        if not psutil.pid_exists(self.process.pid):
            return []
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def processor_seconds(self) -> float:
        """The processor time of all its processes, which other work on the machine disturbs little."""
        times = [process.cpu_times() for process in self.processes()]
        return sum(one.user + one.system for one in times)

    def megabytes(self) -> float:
        """Resident memory of all its processes."""
        return sum(process.memory_info().rss for process in self.processes()) / 2**20

    def wait_until_ready(self, log: Path | None) -> None:
        """Wait until it answers.

        Raises:
            RuntimeError: it ended, or did not become ready.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self.healthy():
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with code {self.process.returncode}; see {log}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server was not ready after {START_SECONDS} seconds; see {log}")
            time.sleep(1)

    def stop(self) -> None:
        """End all its processes."""
        processes = self.processes()
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@contextlib.contextmanager
def serving(model: str, *options: str, guided: bool = True, log: Path | None = None) -> Iterator[Server]:
    """A server until the block ends: ``textguide serve``, or vLLM's own if ``guided`` is False."""
    from textguide.logits_processors.vllm_plugin.further_models import resolve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if guided:
        command = ["-m", "textguide", "serve", model]
    else:
        command = ["-c", VLLM_ENTRY, "--model", resolve(model), "--served-model-name", model]
    command = [sys.executable, "-W", "ignore", *command, *COMMON, "--port", str(port), *options]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
        "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    key = options[options.index("--api-key") + 1] if "--api-key" in options else ""
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("wb")) if log is not None else subprocess.DEVNULL
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        server = Server(f"http://127.0.0.1:{port}", process, model, key)
        try:
            server.wait_until_ready(log)
            yield server
        finally:
            server.stop()


def earlier(path: Path | None, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The report of an earlier run, which this run continues; None if there is no such file.

    Raises:
        SystemExit: it had other settings.
    """
    if path is None or not path.is_file():
        return None
    report: dict[str, Any] = json.loads(path.read_text())
    for name, value in settings.items():
        if report.get(name) != value:
            raise SystemExit(f"--json {path} has {name}: {report.get(name)}, but this run {value}; name another file")
    return report


def about() -> dict[str, Any]:
    """The versions and the machine that figures depend on."""
    import torch
    import vllm

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "dtype": "float32",
        "processor": f"{psutil.cpu_count()} CPU cores, {platform.machine()}",
        **gpu,
    }
