"""What a captioning run looks like: reference metrics against retrieval, and pictures beside their captions."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textguide.support.files import write_text

from ..reports import plots
from ..results.folder import REPORT
from ..results.run import RunResult
from .data import Picture

SHEET = "captions.html"
_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;width:100%}td,th{padding:.35rem .6rem;vertical-align:top;text-align:left;"
    "border-bottom:1px solid #ddd}img{width:128px;image-rendering:pixelated;border-radius:4px}"
    "dt{color:#777;float:left;clear:left;min-width:9rem}dd{margin:0 0 .15rem 9.5rem}.people{color:#777;font-size:13px}"
)


def illustrate(
    run: RunResult,
    folder: Path,
    pictures: Sequence[Picture],
    images: Mapping[str, Any],
    captions: Mapping[str, Sequence[str]],
    most: int,
) -> None:
    """Put the trade's plot and the sheet of pictures (of at most ``most``; 0: none) into ``folder`` and its report."""
    lines = [f"![CIDEr against R@1]({name})" for name in save_trade(run, folder)]
    if most:
        write_contact_sheet(folder, pictures, images, captions, most)
        lines.append(f"Pictures with their captions: [{SHEET}]({SHEET}).")
    report = folder / REPORT
    if lines:
        write_text(report, report.read_text(encoding="utf-8") + "\n" + "\n\n".join(lines) + "\n")


def save_trade(run: RunResult, folder: Path) -> list[str]:
    """Draw CIDEr against R@1, one point a setting with its intervals, into ``trade.png``; the names of what was drawn.

    Nothing is drawn without a judge or without matplotlib.
    """
    points = []
    for result in run.tasks:
        cider, recall = result.metrics.get("cider,none"), result.metrics.get("recall_at_1,none")
        if cider is not None and recall is not None and cider.value is not None and recall.value is not None:
            points.append((result, cider, recall))
    if not points or not plots.available():
        return []
    plots.save(_trade(points), folder / "trade.png")
    return ["trade.png"]


@plots.styled
def _trade(points: Sequence[tuple[Any, Any, Any]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    families: dict[str, list[tuple[Any, Any, Any]]] = {}
    for result, cider, recall in points:
        families.setdefault(_family(result.label), []).append((result, cider, recall))
    for number, (name, members) in enumerate(families.items()):
        x, y = [m[1].value for m in members], [m[2].value for m in members]
        across = [[m[1].value - (m[1].low or 0) for m in members], [(m[1].high or 0) - m[1].value for m in members]]
        up = [[m[2].value - (m[2].low or 0) for m in members], [(m[2].high or 0) - m[2].value for m in members]]
        axes.errorbar(x, y, xerr=across, yerr=up, fmt="o-", color=f"C{number}", label=name, capsize=2, elinewidth=0.8)
        for result, cider, recall in members:
            axes.annotate(
                _strength(result.label),
                (cider.value, recall.value),
                xytext=(6, 5),
                textcoords="offset points",
                fontsize=8,
            )
    axes.set_xlabel("CIDEr")
    axes.set_ylabel("R@1: the judge finds the picture by its caption")
    axes.legend()
    return figure


_NUMBER = re.compile(r"alpha=(\S+)|^cfg (\S+)")


def _family(label: str) -> str:
    """``label`` without its strength: settings that differ in nothing else are joined."""
    return _NUMBER.sub(lambda found: "cfg" if found[2] else "", "cfg 1" if label == "plain" else label).replace(
        "  ", " "
    )


def _strength(label: str) -> str:
    found = _NUMBER.search("cfg 1" if label == "plain" else label)
    if found is None:
        return "α 5" if label.startswith("lm") else ""
    return f"α {found[1]}" if found[1] else f"γ {found[2]}"


def write_contact_sheet(
    folder: Path,
    pictures: Sequence[Picture],
    images: Mapping[str, Any],
    captions: Mapping[str, Sequence[str]],
    most: int,
) -> None:
    """Pictures with their captions under every setting, in one page that holds everything it shows."""
    step = max(1, len(pictures) // most)
    rows = []
    for number in range(0, len(pictures), step)[:most]:
        picture = pictures[number]
        said = "".join(
            f"<dt>{html.escape(label)}</dt><dd>{html.escape(texts[number]) or '<i>nothing</i>'}</dd>"
            for label, texts in captions.items()
        )
        people = "<br>".join(html.escape(text) for text in picture.references)
        rows.append(
            f'<tr><td><img src="{_thumbnail(images[picture.name])}" alt="{html.escape(picture.name)}"></td>'
            f'<td><dl>{said}</dl></td><td class="people">{people}</td></tr>'
        )
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Captions under guidance</title>'
        f"<style>{_STYLE}</style><h1>Captions under guidance</h1><table><tr><th>picture</th><th>captions</th>"
        f"<th>people</th></tr>{''.join(rows)}</table></html>\n"
    )
    write_text(folder / SHEET, page)


def _thumbnail(image: Any, side: int = 256) -> str:
    small = image.copy()
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
