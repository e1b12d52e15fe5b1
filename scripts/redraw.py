"""Draw the pictures of runs in ``docs/results``, and of the comparison of methods, from their results again::

python scripts/redraw.py docs/results
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from textguide.eval import read_run
from textguide.eval.captions.plots import save_trade
from textguide.eval.reports import drawing, plots
from textguide.eval.statistics.intervals import Interval
from textguide.eval.statistics.paired import Comparison
from textguide.eval.sweeps import method_comparison


def run_folder(folder: Path) -> list[str]:
    """The pictures of a sweep, or of a captioning run."""
    run = read_run(folder)
    return save_trade(run, folder) if (folder / "trade.png").exists() else plots.save_all(run, folder)


def methods(file: Path) -> Path:
    """The picture of the comparison of all methods."""
    found = json.loads(file.read_text(encoding="utf-8"))

    def cell(task: str, metric: str, name: str, values: dict[str, Any]) -> method_comparison.Cell:
        against = Comparison(
            task=task, metric=metric, label=name, baseline="plain", n=found["items"][task] // 2,
            difference=values["difference"], low=values["low"], high=values["high"], p=1.0, p_holm=values["p_holm"],
        )  # fmt: skip
        return method_comparison.Cell(values["setting"], Interval(**values["value"]), against)

    table = {
        column: {
            name: cell(*column, name, cells["/".join(column)])
            for name, cells in found["methods"].items()
            if "/".join(column) in cells
        }
        for column in method_comparison.COLUMNS
    }
    picture = file.with_suffix(".png")
    drawing.save(method_comparison.draw(table, list(found["methods"])), picture)
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
