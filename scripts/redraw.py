"""Draw the pictures of runs in ``docs/results``, and of the comparison of methods, from their results again::

python scripts/redraw.py docs/results
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from textguide.eval import read_run
from textguide.eval.reports import drawing


def run_folder(folder: Path) -> list[str]:
    """The pictures of a sweep, or of a captioning run."""
    run = read_run(folder)
    return drawing.save_trade(run, folder) if (folder / "trade.png").exists() else drawing.save_run(run, folder)


def methods(file: Path) -> Path:
    """The picture of the comparison of all methods."""
    comparison = json.loads(file.read_text(encoding="utf-8"))
    picture = file.with_suffix(".png")
    drawing.save(drawing.draw_differences(comparison), picture)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    root = parser.parse_args().results
    for items in sorted(root.rglob("items.npz")):
        print(f"{items.parent}: {', '.join(run_folder(items.parent))}")
    for file in root.glob("methods/methods.json"):
        print(methods(file))


if __name__ == "__main__":
    main()
