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

from ..reports import drawing, plots
from ..results.folder import REPORT
from ..results.run import RunResult
from .data import Picture

SHEET = "captions.html"
_STYLE = """
:root{color-scheme:light dark;--ink:#222;--page:#fff;--dim:#666;--line:#ddd}
@media(prefers-color-scheme:dark){:root{--ink:#e4e4e4;--page:#16181c;--dim:#a3a7ad;--line:#363a41}}
*{box-sizing:border-box}
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:var(--ink);
background:var(--page)}
article{display:grid;grid-template-columns:8.5rem minmax(0,1fr) 14rem;gap:0 1.2rem;padding:.9rem 0;
border-top:1px solid var(--line)}
img{width:100%;max-width:8.5rem;image-rendering:pixelated;border-radius:4px}
dl{margin:0;display:grid;grid-template-columns:minmax(4rem,max-content) minmax(0,1fr);gap:.15rem .9rem}
dt{color:var(--dim);max-width:14rem;overflow-wrap:anywhere}dd{margin:0;overflow-wrap:anywhere}
.people{color:var(--dim);font-size:13px}h2{font-size:13px;font-weight:600;margin:0 0 .2rem;color:var(--dim)}
@media(max-width:50rem){article{grid-template-columns:5.5rem minmax(0,1fr)}.people{grid-column:2;margin-top:.6rem}}
@media(max-width:30rem){dl{display:block}dd{margin-bottom:.45rem}dt{max-width:none;font-size:13px}}
"""


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
    figure, (axes,) = drawing.grid(1, 4.4)
    families: dict[str, list[drawing.Point]] = {}
    for result, cider, recall in points:
        across = (cider.low, cider.high) if cider.low is not None and cider.high is not None else None
        point = drawing.Point(cider.value, recall.value, recall.low, recall.high, _strength(result.label), across)
        families.setdefault(_family(result.label), []).append(point)
    axes.set_xlabel("CIDEr: likeness to people's captions")
    axes.set_ylabel("R@1: the judge finds the picture by its caption")
    drawing.draw_fronts(axes, families)
    note = "pale bars: 95% intervals; γ 1 is plain"
    figure.supxlabel(note, fontsize=8.5, color=drawing.GREY, x=0.99, ha="right")
    return figure


_NUMBER = re.compile(r"alpha=(\S+)|^cfg (\S+)")


def _family(label: str) -> str:
    """``label`` without its strength: settings that differ in nothing else are joined."""
    name = _NUMBER.sub(lambda found: "cfg" if found[2] else "", "cfg 1" if label == "plain" else label)
    name = re.sub(r"^lm\b *(?:prompt=(.*))?", lambda found: _titled(found[1]), name.replace("  ", " ").strip())
    return {"cfg": "CFG, by γ"}.get(name, name)


def _titled(prompt: str | None) -> str:
    return "language model, by α" + (f" (“{prompt}”)" if prompt else "")


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
            f'<article><img src="{_thumbnail(images[picture.name])}" alt="{html.escape(picture.name)}">'
            f'<dl>{said}</dl><div class="people"><h2>by people</h2>{people}</div></article>'
        )
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Captions under guidance</title>'
        f"<style>{_STYLE}</style><h1>Captions under guidance</h1>{''.join(rows)}</html>\n"
    )
    write_text(folder / SHEET, page)


def _thumbnail(image: Any, side: int = 256) -> str:
    small = image.copy()
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
