"""The environment of a run: package versions and the machine, without importing any of the packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

PACKAGES = ("textguide", "torch", "transformers", "lm_eval", "datasets", "numpy", "vllm")


def environment() -> tuple[dict[str, str], dict[str, Any]]:
    """Versions of Python and of the packages that affect results, and a description of the machine.

    Returns:
        ``(versions, machine)``, for :class:`textguide.eval.RunResult`. They name neither the user nor the host.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    machine = {"system": platform.system(), "architecture": platform.machine(), "cpus": os.cpu_count()}
    return versions, machine
