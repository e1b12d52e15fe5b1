"""Runs a module or a script with vLLM's processes forked. They start immediately: vLLM spawns them on a CPU, and each
imports everything again. It is for tests, whose processes have one OpenMP thread (it does not survive a fork)::

    OMP_NUM_THREADS=1 python tests/vllm/forked.py -m textguide serve smollm2
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(__doc__)
        return
    import vllm.utils.system_utils as system

    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise SystemExit("forked.py: OMP_NUM_THREADS must be 1, because OpenMP threads do not survive a fork")
    system.get_mp_context = lambda: multiprocessing.get_context("fork")
    del sys.argv[0]
    if sys.argv[0] == "-m":
        del sys.argv[0]
        sys.path[0] = os.getcwd()
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
