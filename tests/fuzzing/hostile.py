"""Hostile constraints against a running server: who else is answered, and when, and what stays in memory.

    python -m tests.fuzzing.hostile --server vllm --out hostile.json
    python -m tests.fuzzing.hostile --server diffusion

Starts ``textguide serve`` and sends twelve constraints at once that are too large, too complex or nested too deeply,
while ``/health`` is asked every 20 ms. Then many constraints, after which the memory of each process is compared; then
the twelve again, with SIGTERM half a second later.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

MODELS = {"vllm": "smollm2", "diffusion": "smollm2-adapted"}
OPTIONS = {
    "vllm": ("--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8"),
    "diffusion": (),
}
START_SECONDS = 600
BETWEEN = 0.02
"""Seconds between two requests to ``/health``."""


def letters(count: int, seed: int = 0) -> str:
    """``count`` random letters."""
    rng = random.Random(seed)
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(count))


def words(count: int) -> list[str]:
    """``count`` random words of ten letters."""
    text = letters(10 * count, count)
    return [text[start : start + 10] for start in range(0, len(text), 10)]


def hostile_constraints() -> dict[str, tuple[str, str]]:
    """Twelve constraints: the kind and the text of each."""
    deep_schema: Any = {"type": "integer"}
    for _ in range(200):
        deep_schema = {"type": "object", "properties": {"a": deep_schema}, "required": ["a"]}
    rules = "\n".join(f"r{number}: r{number + 1} r{number + 1}" for number in range(2000))
    return {
        "regex: literal of 50 kB": ("regex", letters(50_000)),
        "regex: literal of 200 kB": ("regex", letters(200_000)),
        "regex: 50,000 alternatives": ("regex", "|".join(words(50_000))),
        "regex: any character, 1 to 3,000 times": ("regex", "[\\u0000-\\U0010ffff]{1,3000}"),
        "regex: repetitions of repetitions": ("regex", "((((a{1,60}b?){1,60}c?){1,60}d?){1,60})"),
        "regex: 5,000 brackets": ("regex", "(" * 5000 + "a" + ")" * 5000),
        "schema: enum of 4,000": ("json_schema", json.dumps({"enum": words(4000)})),
        "schema: enum of 10,000": ("json_schema", json.dumps({"enum": words(10_000)})),
        "schema: enum of 200,000": ("json_schema", json.dumps({"enum": words(200_000)})),
        "schema: 200 objects in each other": ("json_schema", json.dumps(deep_schema)),
        "schema: 10,000 lists in each other": ("json_schema", "[" * 10_000 + "]" * 10_000),
        "grammar: 2,000 rules": ("grammar", f"start: r0\n{rules}\nr2000: /a+b/"),
    }


def body_for(server: str, kind: str, text: str) -> bytes:
    """The body of a request with a constraint."""
    if server == "vllm":
        body: dict[str, Any] = {"prompt": "A", "max_tokens": 2, "temperature": 1.0, f"awrs_{kind}": text}
        return json.dumps(body).encode()
    body = {"prompt": "A", "max_tokens": 8}
    if kind == "json_schema":  # as JSON inside the body: deep ones cannot be made by this program's own encoder
        schema = text if text.startswith("{") else f'{{"enum": {text}}}'
        constraint = f'{{"kind": "json-schema", "schema": {schema}}}'
    else:
        field = {"regex": "pattern", "grammar": "grammar"}[kind]
        constraint = json.dumps({"kind": kind, field: text})
    return f'{json.dumps(body)[:-1]}, "constraint": {constraint}}}'.encode()


def answer(url: str, body: bytes, timeout: float = 120.0) -> dict[str, Any]:
    """What the server answers: the status, the seconds, and the start of the message."""
    start = time.perf_counter()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    except OSError as error:
        status, text = 0, f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    try:
        message = json.loads(text)["error"]
        text = f"{message['message']} (param: {message.get('param')})"
    except (ValueError, KeyError, TypeError):
        pass
    return {"status": status, "seconds": round(seconds, 2), "message": "" if status == 200 else text[:300]}


class Health:
    """Asks ``/health`` while it is open; ``latencies`` are in seconds."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.latencies: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        while not self._done.wait(BETWEEN):
            start = time.perf_counter()
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=600) as response:
                    response.read()
            except OSError:
                return
            self.latencies.append(time.perf_counter() - start)

    def __enter__(self) -> Health:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join(600)

    def summary(self) -> dict[str, Any]:
        """Milliseconds: the median, the 99th percentile, and the worst."""
        ordered = sorted(1000 * value for value in self.latencies) or [float("nan")]
        return {
            "median_ms": round(statistics.median(ordered), 1),
            "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))], 1),
            "worst_ms": round(ordered[-1], 1),
            "requests": len(self.latencies),
        }


class Served:
    """``textguide serve`` in a process of its own, on a free port."""

    def __init__(self, server: str, model: str, options: tuple[str, ...], log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.server = server
        self.url = f"http://127.0.0.1:{port}"
        kind = ("--diffusion",) if server == "diffusion" else ()
        command = [sys.executable, "-m", "textguide", "serve", *kind, model, "--host", "127.0.0.1", "--port", str(port)]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *OPTIONS[server], *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", **os.environ},
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start; see {log}")
            time.sleep(0.3)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def megabytes(self) -> dict[str, float]:
        """Resident memory by process."""
        found: dict[str, float] = {}
        first = psutil.Process(self.process.pid)
        for process in (first, *first.children(recursive=True)):
            try:
                command = " ".join(process.cmdline())
                name = "front end" if process.pid == first.pid else process.name()
                if "compiler_process" in command:
                    name = "compiler"
                elif "EngineCore" in command:
                    name = "engine"
                found[name] = round(found.get(name, 0.0) + process.memory_info().rss / 2**20, 1)
            except psutil.Error:
                continue
        return found

    def files(self) -> int:
        """Compiled grammars that are stored for the engine."""
        folders = [Path(value) for value in [psutil.Process(self.process.pid).environ().get("TMPDIR", "/tmp")]]
        found = [path for folder in folders for path in folder.glob("textguide-*/*.json")]
        return sum(len(path.stem) == 64 for path in found)  # hashes

    def terminate(self) -> float:
        """Send SIGTERM; the seconds until the process has ended."""
        start = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return float("inf")
        return time.perf_counter() - start


def twelve_at_once(served: Served) -> dict[str, Any]:
    """All hostile constraints together, and ``/health`` meanwhile."""
    cases = hostile_constraints()
    bodies = [body_for(served.server, kind, text) for kind, text in cases.values()]
    with Health(served.url) as health, ThreadPoolExecutor(len(cases)) as pool:
        answers = list(pool.map(lambda body: answer(served.url, body), bodies))
    return {"health": health.summary(), "answers": dict(zip(cases, answers, strict=True))}


def many(served: Served, count: int) -> dict[str, Any]:
    """Memory before and after ``count`` different constraints, of which every tenth is refused."""
    ordinary = [("regex", f"[a-c]{{1,{2 + number % 40}}}|{letters(200, number)}") for number in range(count)]
    awkward = ("[\\u0000-\\U0010ffff]{1,%d}", "(%d|" + "a" * 200_000 + ")")
    for number in range(0, count, 10):
        ordinary[number] = ("regex", awkward[number // 10 % 2] % (2000 + number))
    answer(served.url, body_for(served.server, "regex", "abc"))
    before = served.megabytes()
    statuses: dict[int, int] = {}
    readings = []
    with Health(served.url) as health, ThreadPoolExecutor(4) as pool:
        for start in range(0, count, 100):
            bodies = [body_for(served.server, *one) for one in ordinary[start : start + 100]]
            for got in pool.map(lambda body: answer(served.url, body), bodies):
                statuses[got["status"]] = statuses.get(got["status"], 0) + 1
            readings.append(served.megabytes())
    return {
        "constraints": count,
        "statuses": statuses,
        "megabytes_before": before,
        "megabytes_every_100": readings,
        "stored_files": served.files(),
        "health": health.summary(),
    }


def stopped_meanwhile(served: Served) -> dict[str, Any]:
    """SIGTERM half a second after all hostile constraints were sent."""
    cases = hostile_constraints()
    bodies = [body_for(served.server, kind, text) for kind, text in cases.values()]
    with ThreadPoolExecutor(len(cases)) as pool:
        running = [pool.submit(answer, served.url, body) for body in bodies]
        time.sleep(0.5)
        seconds = served.terminate()
        statuses = sorted(one.result()["status"] for one in running)
    return {"seconds": round(seconds, 2), "statuses": statuses}


def main() -> None:
    """Run the checks, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=MODELS, default="vllm")
    parser.add_argument("--model", help="[smollm2; smollm2-adapted for canvases]")
    parser.add_argument(
        "--many", type=int, default=1000, help="constraints after which memory is compared [%(default)s]"
    )
    parser.add_argument("--log", type=Path, default=Path("hostile.log"), help="output of the server [%(default)s]")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("options", nargs="*", help="of the server, after --")
    arguments = parser.parse_args()
    model = arguments.model or MODELS[arguments.server]
    served = Served(arguments.server, model, tuple(arguments.options), arguments.log)
    figures: dict[str, Any] = {"server": arguments.server, "model": model, "load_average": os.getloadavg()[0]}
    try:
        # The first request waits until the processes are there.
        answer(served.url, body_for(arguments.server, "regex", "[ab]"))
        with Health(served.url) as health:
            time.sleep(3)
        figures["idle"] = health.summary()
        figures["at_once"] = twelve_at_once(served)
        figures["again"] = twelve_at_once(served)
        if arguments.many:
            figures["many"] = many(served, arguments.many)
        figures["sigterm"] = stopped_meanwhile(served)
    finally:
        if served.process.poll() is None:
            served.terminate()
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
