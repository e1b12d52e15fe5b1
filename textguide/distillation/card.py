"""What is written beside an adapter: what it stands for, what it was made of, and how to use it."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..forward.low_rank import CARD
from ..forward.steering_vectors import model_fingerprint
from ..guidance import Guidance, split
from ..support import files
from .settings import DistillSettings

VERSION = 1
FILES = ("README.md", "adapter_config.json", "adapter_model.safetensors")
PACKAGES = ("textguide", "torch", "transformers", "peft")


def digest(value: Any) -> str | None:
    """Sixteen hexadecimal digits of a JSON value; None for None."""
    if value is None:
        return None
    return hashlib.sha256(files.json_bytes(files.plain(value, str))).hexdigest()[:16]


def last_tenth(losses: Sequence[float]) -> float:
    """The mean loss over the last tenth of the steps."""
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def remove(folder: Path) -> None:
    """Take away what :func:`finish` wrote, the card first."""
    if (folder / CARD).is_file():
        for name in (CARD, *FILES):
            (folder / name).unlink(missing_ok=True)


def finish(
    folder: Path,
    wrapped: Any,
    guidance: Guidance,
    settings: DistillSettings,
    *,
    model: Any,
    name: str,
    losses: Sequence[float],
    texts: Sequence[Any],
    shares: dict[str, Any],
    seconds: float,
) -> None:
    """Write the adapter, and at last its card, without which the folder holds none."""
    wrapped.peft_config["default"].base_model_name_or_path = Path(name).name
    wrapped.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    tokens = sum(len(text.prompt) + len(text.continuation) for text in texts)
    found = {
        "version": VERSION, "guidance": guidance.to_dict(), "fingerprint": guidance.fingerprint,
        "scale": shares["scale"],
        "model": Path(name).name, "model_fingerprint": model_fingerprint(model), "settings": settings.to_dict(),
        "positions": shares["positions"], "texts": len(texts), "tokens": tokens,
        "weights": {key: shares[key] for key in ("trained", "of")},
        "loss": {"first": losses[0], "last tenth": last_tenth(losses)}, "losses": list(losses), "seconds": seconds,
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }  # fmt: skip
    files.write_text(folder / "README.md", _readme(folder, guidance, settings, found))
    files.write_json(folder / CARD, found)


def _readme(folder: Path, guidance: Guidance, settings: DistillSettings, found: dict[str, Any]) -> str:
    branching = split(guidance).branching
    use = f"adapter={folder.name!r}"
    dial = ""
    if getattr(branching, "name", "") == "cfg":
        dial = (
            f"\nγ stays a dial: `CFG(γ, distilled={folder.name!r})` scales the adapter by (γ − 1) / "
            f"({found['scale']:g} − 1).\n"
        )
    return f"""---
library_name: peft
base_model: {found["model"]}
tags: [textguide, guidance-distillation, lora]
---

# {folder.name}

With this adapter {found["model"]} says by itself what it says under guidance, at the price of plain decoding.

```json
{guidance.to_json()}
```

```python
import textguide

model, tokenizer = textguide.load({found["model"]!r}, {use})
```
{dial}
| | |
|---|---|
| guidance | `{guidance.name}`, fingerprint `{guidance.fingerprint}` |
| model | {found["model"]}, fingerprint `{found["model_fingerprint"]}` |
| objective | {settings.objective}, texts {settings.source}, positions {found["positions"]} |
| data | {found["texts"]} texts, {found["tokens"]} tokens |
| training | {settings.steps} steps of {settings.batch_size} texts, AdamW {settings.learning_rate:g} |
| LoRA | rank {settings.rank} on {settings.targets}, seed {settings.seed} |
| weights | {found["weights"]["trained"]:,} trained beside {found["weights"]["of"]:,} |
| loss | {found["loss"]["first"]:.4f} at first, {found["loss"]["last tenth"]:.4f} over the last tenth of the steps |
| seconds | {found["seconds"]:.0f} |
"""
