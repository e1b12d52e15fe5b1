"""Runs one Python program in a subprocess under limits of time, memory and file size.

The limits hold accidents in check: endless loops, runaway allocations, calls to ``exit``. They are no wall
against a program that means harm. Run untrusted models in a container without a network.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

# The token is read only after the program has run to its end, so neither an exit code of 0 nor anything
# printed can stand for success. The program's own descriptors 0 to 2 lead nowhere.
_DRIVER = """
import os, resource, sys
memory, seconds, file_size, length, verdict = (int(argument) for argument in sys.argv[1:])
source = b""
while len(source) < length:
    source += os.read(0, length - len(source))
stdin = os.dup(0)
os.dup2(os.open(os.devnull, os.O_RDWR), 0)
limits = {"AS": memory, "CPU": seconds, "FSIZE": file_size, "CORE": 0, "NPROC": 0}
for name, value in limits.items():
    limit = "RLIMIT_" + name
    if hasattr(resource, limit):
        hard = resource.getrlimit(getattr(resource, limit))[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(getattr(resource, limit), (value, value))
def run():
    try:
        exec(compile(source, "<program>", "exec"), {"__name__": "__program__"})
    except MemoryError:
        return b"memory"
    except BaseException as error:
        return b"failed: " + type(error).__name__.encode()
    return os.read(stdin, 64)
message = run()
os.write(verdict, message)
os._exit(0)
"""


@dataclass(frozen=True)
class Verdict:
    """How a program ended: whether it ran to its end without an exception, and in a word why not."""

    passed: bool
    reason: str


def run_program(program: str, *, timeout: float = 5.0, memory_mb: int = 1024, file_mb: int = 16) -> Verdict:
    """Run ``program`` in a fresh interpreter, in an empty folder of its own that is deleted afterwards.

    Args:
        program: Python source. It passes when its last line is reached and nothing was raised.
        timeout: seconds of wall-clock time; the process and what it started are killed after that.
        memory_mb: the address space the program may take, in MiB. Not enforced by macOS.
        file_mb: the size a file it writes may reach, in MiB.

    Returns:
        The verdict. Its reason is ``passed``, ``timeout``, ``memory``, ``exited`` (the process ended before
        the program did), or ``failed: `` and the exception's type.

    Raises:
        ValueError: a limit is not above zero.
        OSError: the system has no resource limits (Windows).
    """
    for name, value in (("timeout", timeout), ("memory_mb", memory_mb), ("file_mb", file_mb)):
        if not value > 0:
            raise ValueError(f"{name}={value!r} must be above 0")
    if os.name != "posix":
        raise OSError("running programs needs the resource limits of Linux or macOS: use one of them, or a container")

    token = secrets.token_hex(16).encode()
    source = program.encode("utf-8", "surrogatepass")
    reading, writing = os.pipe()
    arguments = [int(memory_mb) << 20, int(timeout) + 1, int(file_mb) << 20, len(source), writing]
    try:
        with tempfile.TemporaryDirectory(prefix="textguide-", ignore_cleanup_errors=True) as folder:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _DRIVER, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[writing],
                cwd=folder,
                env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
            timed_out = _feed(process, source + token, timeout)
        os.close(writing)
        writing = -1
        # Nothing can block here: the whole process group is dead, unless a child of it left the group.
        os.set_blocking(reading, False)
        message = _read_all(reading)
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    return _verdict(message, token, timed_out)


def _feed(process: subprocess.Popen[bytes], payload: bytes, timeout: float) -> bool:
    """Hand over the program, wait for the end, kill what is left; whether the time ran out."""
    try:
        process.communicate(payload, timeout=timeout)
        timed_out = False
    except subprocess.TimeoutExpired:
        timed_out = True
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
    return timed_out


def _read_all(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except BlockingIOError:
        return b""


def _verdict(message: bytes, token: bytes, timed_out: bool) -> Verdict:
    if message == token:
        return Verdict(True, "passed")
    if timed_out:
        return Verdict(False, "timeout")
    if message == b"memory" or message.startswith(b"failed: "):
        return Verdict(False, message.decode())
    return Verdict(False, "exited")
