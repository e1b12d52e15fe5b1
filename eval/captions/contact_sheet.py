"""The contact sheet of a captioning run: a page with pictures and their captions under every setting."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textguide.support.files import write_text

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


def write_contact_sheet(
    folder: Path,
    pictures: Sequence[Picture],
    images: Mapping[str, Any],
    captions: Mapping[str, Sequence[str]],
    most: int,
) -> None:
    """Write ``captions.html``, which contains the pictures themselves.

    Args:
        folder: of the file.
        pictures: all pictures of the run.
        images: the images by the names of the pictures.
        captions: by label, one caption per picture.
        most: largest number of pictures, which are taken at equal distances.
    """
    step = max(1, len(pictures) // most)
    rows = []
    for number in range(0, len(pictures), step)[:most]:
        picture = pictures[number]
        entries = []
        for label, texts in captions.items():
            caption = html.escape(texts[number]) or "<i>nothing</i>"
            entries.append(f"<dt>{html.escape(label)}</dt><dd>{caption}</dd>")
        people = "<br>".join(html.escape(text) for text in picture.references)
        rows.append(
            f'<article><img src="{_thumbnail(images[picture.name])}" alt="{html.escape(picture.name)}">'
            f'<dl>{"".join(entries)}</dl><div class="people"><h2>by people</h2>{people}</div></article>'
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
