"""Where a run of training stands, on disk: weights, the optimiser's moments, the losses so far. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..support import files

FILE = "checkpoint.safetensors"
RUN = "run.json"


def begin(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make ``folder`` a run of its own, or go on with the one that is there.

    Raises:
        ValueError: it holds a run with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = json.loads(files.json_bytes(files.plain(identity)))
    file = folder / RUN
    if not file.is_file():
        files.write_json(file, told)
        return
    there = json.loads(file.read_text(encoding="utf-8"))
    changed = sorted(name for name in {*told, *there} if told.get(name) != there.get(name))
    if changed:
        raise ValueError(
            f"{folder} holds a run that differs in {', '.join(changed)}; give it the same settings to go on, or "
            "another --out (or --overwrite)"
        )


def save(folder: Path, parameters: Mapping[str, Tensor], optimizer: Any, losses: list[float]) -> None:
    """Write all of it, in place of what was there."""
    from safetensors.torch import save as to_bytes

    tensors = {f"weight.{name}": value.detach() for name, value in parameters.items()}
    for name, value in parameters.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimizer.state[value][moment]
    told = {"losses": json.dumps(losses)}
    held = {name: value.to("cpu").contiguous() for name, value in tensors.items()}
    files.write_bytes(folder / FILE, to_bytes(held, told))


def resume(folder: Path, parameters: Mapping[str, Tensor], optimizer: Any) -> list[float]:
    """Bring weights and optimiser to where ``folder`` says; the losses so far, empty where nothing was saved.

    Raises:
        ValueError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / FILE
    if not file.is_file():
        return []
    try:
        with safe_open(file, "pt") as stream, torch.no_grad():
            losses: list[float] = json.loads(stream.metadata()["losses"])
            for name, value in parameters.items():
                value.copy_(stream.get_tensor(f"weight.{name}"))
                moments = {
                    one: stream.get_tensor(f"{one}.{name}").to(value.device) for one in ("exp_avg", "exp_avg_sq")
                }
                optimizer.state[value] = {"step": torch.tensor(float(len(losses))), **moments}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it, and training begins again") from error
    return losses
