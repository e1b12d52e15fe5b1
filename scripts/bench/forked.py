"""Runs a module or a script with vLLM's processes forked, which start at once: on a CPU vLLM spawns them, and each
imports everything again. For tests, whose processes have one thread of OpenMP (it does not survive a fork)::

    OMP_NUM_THREADS=1 python scripts/bench/forked.py -m textguide serve smollm2
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    import vllm.utils.system_utils as system

    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise SystemExit("forked.py: OMP_NUM_THREADS must be 1, since threads of OpenMP do not survive a fork")
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
