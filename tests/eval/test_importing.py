"""What importing the room loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_importing_loads_neither_torch_nor_matplotlib() -> None:
    program = (
        "import sys, textguide.eval.reports.compare, textguide.eval.reports.drawing, textguide.eval.results.journal\n"
        "sys.exit(', '.join({'torch', 'matplotlib', 'scipy', 'lm_eval'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stderr.strip() == ""
