"""One self-contained HTML page around values of JSON: the components travel inside it, and it loads nothing."""

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
"""What a page can show, by the field ``kind`` of its values, and its title."""
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
    """The page for ``values``; every text in it is escaped.

    Args:
        values: JSON values with a ``kind``: ``text`` (:meth:`textguide.Explanation.to_dict`), ``rows`` or ``canvas``.

    Raises:
        ValueError: the kind is unknown, or something is no JSON.
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
        # A script's text ends at the first "</script" and nowhere else, and "<!--" may hide that.
        values=text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
    )


def import_map(addresses: Mapping[str, str]) -> str:
    """The map from the names under which modules import each other to ``addresses``, by file name."""
    names = {"preact.mjs": "preact", "hooks.mjs": "preact/hooks", "htm.mjs": "htm"}
    imports = {names.get(file, f"textguide/{Path(file).stem}"): address for file, address in addresses.items()}
    return json.dumps({"imports": imports}).replace("<", "\\u003c")


@lru_cache(maxsize=1)
def assets() -> dict[str, bytes]:
    """The components' files by name."""
    files = [*HOME.iterdir(), *(HOME / "vendor").iterdir()]
    return {path.name: path.read_bytes() for path in sorted(files) if path.suffix in (".js", ".mjs", ".css")}


def _address(data: bytes) -> str:
    return f"data:text/javascript;base64,{base64.b64encode(data).decode()}"


def _without_scripts(values: Mapping[str, Any]) -> str:
    """The texts, for a browser that runs no scripts."""
    texts = values.get("texts") or [f"{values.get('prompt', '')}{values.get('text', '')}"]
    given = [values.get("label"), values.get("summary"), values.get("note"), *texts]
    return "".join(f"<p>{html.escape(str(one))}</p>" for one in given if one)
