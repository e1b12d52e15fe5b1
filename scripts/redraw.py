"""Draws every picture of ``docs/results`` anew from the results beside it; nothing is measured::

python scripts/redraw.py docs/results
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from textguide.eval import read_run
from textguide.eval.reports import drawing

for _folder in ("bench", "study"):
    sys.path.insert(0, str(Path(__file__).parent / _folder))

import caif_control  # noqa: E402
import constrained_quality  # noqa: E402
import diffusion  # noqa: E402


def run_folder(folder: Path) -> list[str]:
    """The pictures of a sweep, or of a captioning run."""
    run = read_run(folder)
    return drawing.save_trade(run, folder) if (folder / "trade.png").exists() else drawing.save_run(run, folder)


def methods(file: Path) -> list[str]:
    """The comparison of all methods."""
    comparison = json.loads(file.read_text(encoding="utf-8"))
    drawing.save(drawing.draw_differences(comparison), file.with_suffix(".png"))
    return [file.with_suffix(".png").name]


def caif(file: Path) -> list[str]:
    """Control against fluency."""
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    for task, rows in results.items():
        drawing.save(caif_control.front(task, rows), file.parent / f"{task}.png")
    drawing.save(caif_control.saving(results["to-positive"]), file.parent / "saving.png")
    return [*(f"{task}.png" for task in results), "saving.png"]


def canvas(file: Path) -> list[str]:
    """A study of masked diffusion."""
    families = {setting.name: setting.family for setting in diffusion.settings()}
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = [{**row, "family": families[row["name"]]} for row in rows]
    names = [*rows[0]["items"], *rows[0]["extra"]]
    for metric in names:
        diffusion.plot(metric, rows, file.parent / f"{metric.replace(' ', '-')}.png")
    return [f"{metric.replace(' ', '-')}.png" for metric in names]


def constrained(file: Path) -> list[str]:
    """The constrained tasks."""
    constrained_quality.draw(json.loads(file.read_text(encoding="utf-8"))["tasks"], file.parent / "quality.png")
    return ["quality.png"]


@drawing.styled
def steering(file: Path) -> list[str]:
    """Vectors beside other ways to a good mood."""
    found = json.loads(file.read_text(encoding="utf-8"))
    families: dict[str, list[drawing.Point]] = {}
    for name, row in found["settings"].items():
        if ", -" in name or "layer 14" in name:
            continue
        family, _, strength = name.removesuffix(", negative prompt").rpartition(", ")
        if family.endswith(", 2"):  # against the model as it is
            family, strength = "layer 18, with γ", f"2, {strength}"
        point = drawing.Point(row["perplexity"], row["positive"], name=strength or "plain")
        families.setdefault((family or "plain").removeprefix("steering, "), []).append(point)
    figure, (axes,) = drawing.grid(1, 4.2)
    axes.set_xlabel("perplexity under the unguided model")
    axes.set_ylabel("share positive by VADER")
    drawing.draw_fronts(axes, families, log=True)
    note = f"{found['prompts']} prompts; numbers: strength of the vector, α or γ"
    figure.supxlabel(note, fontsize=8.5, color=drawing.GREY, x=0.99, ha="right")
    drawing.save(figure, file.with_suffix(".png"))
    return [file.with_suffix(".png").name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    root = parser.parse_args().results
    done = [(items.parent, run_folder(items.parent)) for items in sorted(root.rglob("items.npz"))]
    for pattern, draw in (
        ("methods/methods.json", methods), ("caif/control.json", caif), ("diffusion/*/settings.jsonl", canvas),
        ("constrained/results.json", constrained), ("steering.json", steering),
    ):  # fmt: skip
        done += [(file.parent, draw(file)) for file in sorted(root.glob(pattern))]
    for folder, names in done:
        print(f"{folder}: {', '.join(names)}")


if __name__ == "__main__":
    main()
