"""A server in a process of its own, on the loopback, and what it says of itself."""

from __future__ import annotations

import contextlib
import json
import os
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


@dataclass
class Server:
    """A running server.

    Args:
        url: up to the port.
        process: its first process.
        model: the name that clients use.
        key: what clients authenticate themselves with; empty: nobody asks.
    """

    url: str
    process: subprocess.Popen[bytes]
    model: str
    key: str = ""

    def metrics(self) -> dict[str, float]:
        """Prometheus's figures, summed over labels."""
        values: dict[str, float] = {}
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        request = urllib.request.Request(f"{self.url}/metrics", headers=headers)
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

    def processor_seconds(self) -> float:
        """What all its processes have used of the processor, which other work on the machine disturbs little."""
        family = psutil.Process(self.process.pid)
        times = [one.cpu_times() for one in [family, *family.children(recursive=True)]]
        return sum(one.user + one.system for one in times)

    def megabytes(self) -> float:
        """Resident memory of all its processes."""
        family = psutil.Process(self.process.pid)
        return sum(one.memory_info().rss for one in [family, *family.children(recursive=True)]) / 2**20


@contextlib.contextmanager
def serving(model: str, *options: str, guided: bool = True, log: Path | None = None) -> Iterator[Server]:
    """A server until the block ends: ``textguide serve``, or vLLM's own where ``guided`` is False."""
    from textguide.logits_processors.vllm_plugin.further_models import resolve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if guided:
        command = [sys.executable, "-W", "ignore", "-m", "textguide", "serve", model]
    else:
        # `vllm serve` looks for a package called vllm, and the build for CPUs is called otherwise.
        entry = "from vllm.entrypoints.launchers.api_server.entry import main; main()"
        command = [sys.executable, "-W", "ignore", "-c", entry, "--model", resolve(model), "--served-model-name", model]
    command += [*COMMON, "--port", str(port), *options]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
        "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("wb")) if log is not None else subprocess.DEVNULL
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        key = options[options.index("--api-key") + 1] if "--api-key" in options else ""
        server = Server(f"http://127.0.0.1:{port}", process, model, key)
        try:
            deadline = time.monotonic() + 600
            while not server.healthy():
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended with code {process.returncode}; see {log}")
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the server was not ready in ten minutes; see {log}")
                time.sleep(1)
            yield server
        finally:
            family = [psutil.Process(process.pid)] if psutil.pid_exists(process.pid) else []
            family += [child for one in family for child in one.children(recursive=True)]
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


def earlier(path: Path | None, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier run left in a file, which this one goes on with; None where there is none.

    Raises:
        SystemExit: it had other settings.
    """
    if path is None or not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    for name, value in settings.items():
        if found.get(name) != value:
            raise SystemExit(f"--json {path} has {name}: {found.get(name)}, and this run {value}; name another file")
    return found


def write(path: Path, report: dict[str, Any]) -> None:
    from textguide.support.files import write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report)


def about() -> dict[str, Any]:
    """What the figures depend on."""
    import platform

    import psutil
    import torch
    import vllm

    cores = psutil.cpu_count()
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "dtype": "float32",
        "processor": f"{cores} CPU cores, {platform.machine()}",
        **gpu,
    }
