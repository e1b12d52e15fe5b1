"""A self-contained HTML page around JSON values: it contains the components, and loads nothing."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from string import Template
from typing import Any

HOME = Path(__file__).parent / "assets"
KINDS = {"text": "what guidance did", "rows": "texts that were written together", "canvas": "the canvas, step by step"}
"""Titles of pages, by the field ``kind`` of their values."""
POLICY = "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; img-src data:"

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="$policy">
<title>textguide: $title</title>
<style>$style</style>
<script type="importmap">$importmap</script></head>
<body><main id="viewer" class="viewer page"><noscript><h1>$title</h1>$without</noscript></main>
<script type="application/json" id="values">$values</script>
<script type="module">import "textguide/standalone";</script></body></html>
""")


def page(values: Mapping[str, Any]) -> str:
    """The page for ``values``, with all texts escaped.

    Args:
        values: JSON values with a ``kind``: ``text`` (:meth:`textguide.Explanation.to_dict`), ``rows`` or ``canvas``.

    Raises:
        ValueError: the kind is unknown, or a value is not JSON.
    """
    title = KINDS.get(str(values.get("kind")))
    if title is None:
        raise ValueError(f"kind={values.get('kind')!r} cannot be shown; use one of {', '.join(KINDS)}")
    files = assets()
    addresses = {name: _address(data) for name, data in files.items() if name.endswith("js")}
    text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    return _PAGE.substitute(
        policy=POLICY,
        title=title,
        style=files["viewer.css"].decode().replace("</", "<\\/"),
        importmap=import_map(addresses),
        without=_without_scripts(values),
        # The text of a script ends at the first "</script", unless a "<!--" before it hides that.
        values=text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
    )


def import_map(addresses: Mapping[str, str]) -> str:
    """The import map: names under which modules import each other → ``addresses``, which are given by file name."""
    names = {"preact.mjs": "preact", "hooks.mjs": "preact/hooks", "htm.mjs": "htm"}
    imports = {names.get(file, f"textguide/{Path(file).stem}"): address for file, address in addresses.items()}
    return json.dumps({"imports": imports}).replace("<", "\\u003c")


@lru_cache(maxsize=1)
def assets() -> dict[str, bytes]:
    """The files of the components, by name."""
    files = [*HOME.iterdir(), *(HOME / "vendor").iterdir()]
    return {path.name: path.read_bytes() for path in sorted(files) if path.suffix in (".js", ".mjs", ".css")}


def _address(data: bytes) -> str:
    return f"data:text/javascript;base64,{base64.b64encode(data).decode()}"


def _without_scripts(values: Mapping[str, Any]) -> str:
    """The texts, for browsers that do not run scripts."""
    texts = values.get("texts") or [f"{values.get('prompt', '')}{values.get('text', '')}"]
    paragraphs = [values.get("label"), values.get("summary"), values.get("note"), *texts]
    return "".join(f"<p>{html.escape(str(paragraph))}</p>" for paragraph in paragraphs if paragraph)
