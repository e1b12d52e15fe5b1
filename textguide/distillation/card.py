"""What is written next to the weights of an adapter: a model card for people, and one for textguide."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..forward.low_rank import CARD
from ..forward.steering_vectors import model_fingerprint
from ..guidance import Guidance, split
from ..support import files
from .settings import DistillSettings
from .texts import Text

VERSION = 1
FILES = ("README.md", "adapter_config.json", "adapter_model.safetensors")
PACKAGES = ("textguide", "torch", "transformers", "peft")


@dataclass(frozen=True)
class TrainedAdapter:
    """The result of a training run.

    Args:
        model: the ``PeftModel``.
        losses: the loss of every step.
        resumed: the number of steps that an earlier process had finished.
        scale: γ at which the adapter has its full strength.
        positions: see :class:`DistillSettings`.
        trained_weights: number of weights of the adapter.
        weights: number of weights of the model.
    """

    model: Any
    losses: list[float]
    resumed: int
    scale: float
    positions: str
    trained_weights: int
    weights: int


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
    """Remove what :func:`finish` wrote, the card first, so that what is left is never taken for a finished adapter."""
    if (folder / CARD).is_file():
        for name in (CARD, *FILES):
            (folder / name).unlink(missing_ok=True)


def finish(
    folder: Path,
    trained: TrainedAdapter,
    guidance: Guidance,
    settings: DistillSettings,
    *,
    model: Any,
    name: str,
    texts: Sequence[Text],
    seconds: float,
) -> None:
    """Write the adapter, and its card last: a folder with a card is a finished adapter."""
    trained.model.peft_config["default"].base_model_name_or_path = Path(name).name
    trained.model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    content = {
        "version": VERSION,
        "guidance": guidance.to_dict(),
        "fingerprint": guidance.fingerprint,
        "scale": trained.scale,
        "model": Path(name).name,
        "model_fingerprint": model_fingerprint(model),
        "settings": settings.to_dict(),
        "positions": trained.positions,
        "texts": len(texts),
        "tokens": sum(len(text.prompt) + len(text.continuation) for text in texts),
        "weights": {"trained": trained.trained_weights, "of": trained.weights},
        "loss": {"first": trained.losses[0], "last tenth": last_tenth(trained.losses)},
        "losses": list(trained.losses),
        "seconds": seconds,
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }
    files.write_text(folder / "README.md", _readme(folder, guidance, settings, content))
    files.write_json(folder / CARD, content)


def _readme(folder: Path, guidance: Guidance, settings: DistillSettings, content: dict[str, Any]) -> str:
    branching = split(guidance).branching
    use = f"adapter={folder.name!r}"
    scaling = ""
    if getattr(branching, "name", "") == "cfg":
        scaling = (
            f"\nγ can still be changed: `CFG(γ, distilled={folder.name!r})` scales the adapter by (γ − 1) / "
            f"({content['scale']:g} − 1).\n"
        )
    return f"""---
library_name: peft
base_model: {content["model"]}
tags: [textguide, guidance-distillation, lora]
---

# {folder.name}

With this adapter, {content["model"]} follows the guidance below at the price of plain decoding.

```json
{guidance.to_json()}
```

```python
import textguide

model, tokenizer = textguide.load({content["model"]!r}, {use})
```
{scaling}
| | |
|---|---|
| guidance | `{guidance.name}`, fingerprint `{guidance.fingerprint}` |
| model | {content["model"]}, fingerprint `{content["model_fingerprint"]}` |
| objective | {settings.objective}, texts {settings.source}, positions {content["positions"]} |
| data | {content["texts"]} texts, {content["tokens"]} tokens |
| training | {settings.steps} steps of {settings.batch_size} texts, AdamW {settings.learning_rate:g} |
| LoRA | rank {settings.rank} on {settings.targets}, seed {settings.seed} |
| weights | {content["weights"]["trained"]:,} trained, {content["weights"]["of"]:,} in the model |
| loss | {content["loss"]["first"]:.4f} at first, {content["loss"]["last tenth"]:.4f} over the last tenth of the steps |
| seconds | {content["seconds"]:.0f} |
"""
