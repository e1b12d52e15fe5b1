"""The facts about architectures that the package ships: established by probes of tiny models, and written as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import transformers

from textguide.forward import facts, probes
from textguide.forward.model_adapter import ModelAdapter, adapter
from textguide.forward.own_lengths import IMPLEMENTATIONS


def established(model: Any) -> dict[str, Any] | None:
    """The entry of a tiny model; None if it cannot be probed, or is refused, which is found out again for each user."""
    known = adapter(model)
    if probes.cannot_be_probed(known):
        return None
    try:
        return {
            "switches": facts.switches(model.config),
            "padding": probes.padding(known).name,
            "reads_chunks": probes.reads_chunks(known),
            "is_causal": probes.is_causal(known),
            "stays_padded": _stays_padded(known),
        }
    except Exception:
        return None


def _stays_padded(known: ModelAdapter) -> str:
    """The reason with any of the attention implementations that the class has."""
    own = known.base.config._attn_implementation
    try:
        for name in IMPLEMENTATIONS:
            try:
                known.base.set_attn_implementation(name)
            except ValueError:  # the class does not have it
                continue
            reason = probes.stays_padded(known)
            if reason:
                return reason
        return ""
    finally:
        known.base.set_attn_implementation(own)


def text(rows: Sequence[dict[str, Any]]) -> str:
    """The file of facts from the rows of ``scripts/conformance.py``: a line for each entry, sorted."""
    classes: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda one: (one["name"], one["variant"])):
        if row.get("facts") is not None:
            entries = classes.setdefault(row["name"], [])
            line = json.dumps(row["facts"])
            entries += [line] if line not in entries else []
    lines = []
    for name, entries in classes.items():
        inside = entries[0] if len(entries) == 1 else "\n   " + ",\n   ".join(entries) + "\n  "
        lines.append(f"  {json.dumps(name)}: [{inside}]")
    body = ",\n".join(lines)
    return f'{{\n "transformers": {json.dumps(transformers.__version__)},\n "classes": {{\n{body}\n }}\n}}\n'
