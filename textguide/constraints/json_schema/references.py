"""References of a schema: each must lead to a schema inside the same document, since nothing is ever fetched."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote

from ..arguments import shortened
from .relaxation import DATA, Schema, bundled, children, escaped

KEYWORDS = ("$ref", "$dynamicRef", "$recursiveRef")
_MISSING = object()


def check_references(schema: Any) -> None:
    """Refuse a schema with a reference that leads nowhere: an engine would allow any document in its place.

    Args:
        schema: as ``json.loads`` returns it.

    Raises:
        ValueError: a reference names a file, an address, or a part that the schema does not have.
    """
    whole = bundled(schema)
    if not isinstance(whole, dict):
        return
    checked: set[str] = set()
    queue = [""]
    while queue:
        pointer = queue.pop()
        node = _at(whole, pointer)
        if pointer in checked or not isinstance(node, dict):
            continue
        checked.add(pointer)
        for keyword in KEYWORDS:
            if keyword in node:
                queue.append(_target(whole, node, keyword))
        queue += [f"{pointer}/{escaped(key)}{rest}" for key, rest, _ in children(node)]


def with_plain_references(schema: Any) -> Any:
    """``schema`` with every reference as a JSON pointer without escapes, for an engine that does not decode them.

    A schema whose pointer needs escapes is repeated under a plain name.
    """
    whole = bundled(schema)
    if not isinstance(whole, dict):
        return whole
    names: dict[str, str] = {}
    whole = _renamed(whole, names)
    definitions = dict(whole.get("$defs") or {})
    for reference, name in list(names.items()):
        definitions[name] = _at(whole, unquote(reference[1:]))
    return {**whole, "$defs": definitions} if names else whole


def _renamed(node: Any, names: dict[str, str]) -> Any:
    """``node`` with plain names in its references; ``names`` receives them, by the reference."""
    if isinstance(node, list):
        return [_renamed(item, names) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: value if key in DATA else _renamed(value, names) for key, value in node.items()}
    reference = node.get("$ref")
    if isinstance(reference, str) and ("~" in reference or "%" in reference):
        name = names.setdefault(reference, f"textguide-{len(names)}")
        result["$ref"] = f"#/$defs/{name}"
    return result


def _target(whole: Schema, node: Schema, keyword: str) -> str:
    """The JSON pointer of the schema that a reference leads to; empty for one that is resolved while documents are
    read."""
    reference = node[keyword]
    if isinstance(reference, str):
        if reference == "#" or (keyword == "$dynamicRef" and _has_anchor(whole, reference)):
            return ""
        pointer = unquote(reference[1:])
        if reference.startswith("#/") and isinstance(_at(whole, pointer), (dict, bool)):
            return pointer
    raise ValueError(
        f"schema={shortened(json.dumps(whole))}: {keyword} {shortened(repr(reference))} leads nowhere in the schema, "
        f"and nothing is fetched; name a part that it has, such as '#/$defs/NAME'{known_definitions(whole)}"
    )


def _at(whole: Schema, pointer: str) -> Any:
    """The part of a schema at a JSON pointer; a value that is no schema if there is none."""
    node: Any = whole
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict):
            node = node.get(part, _MISSING)
        elif isinstance(node, list) and re.fullmatch("[0-9]+", part) and int(part) < len(node):
            node = node[int(part)]
        else:
            return _MISSING
    return node


def _has_anchor(node: Any, reference: str) -> bool:
    """Whether a schema inside ``node`` has the anchor to which a dynamic reference leads."""
    if not isinstance(node, dict):
        return False
    if reference[:1] == "#" and reference[1:] in (node.get("$dynamicAnchor"), node.get("$anchor")):
        return True
    return any(_has_anchor(child, reference) for _, _, child in children(node))


def known_definitions(whole: Any) -> str:
    """The definitions of a schema, as the end of a message."""
    names = []
    for keyword in ("$defs", "definitions"):
        parts = whole.get(keyword) if isinstance(whole, dict) else None
        if isinstance(parts, dict):
            names += [f"#/{keyword}/{name}" for name in parts]
    return f"; it has {shortened(', '.join(names))}" if names else ""
