"""An unfinished training run on disk: weights, the moments of the optimizer and the losses. No pickle is used."""

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
_MOMENTS = ("exp_avg", "exp_avg_sq")
"""The state of AdamW for each parameter."""


def begin(folder: Path, identity: Mapping[str, Any]) -> None:
    """Start a run in ``folder``, or resume the one that is there.

    Args:
        folder: the folder of the run, which is created if it is missing.
        identity: everything that the result depends on.

    Raises:
        ValueError: the folder has a run with another identity.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = json.loads(files.json_bytes(files.plain(identity)))
    file = folder / RUN
    if not file.is_file():
        files.write_json(file, content)
        return
    earlier = json.loads(file.read_text(encoding="utf-8"))
    changed = sorted(name for name in {*content, *earlier} if content.get(name) != earlier.get(name))
    if changed:
        raise ValueError(
            f"{folder} has a run that differs in {', '.join(changed)}; use the same settings to resume it, or another "
            "--out (or --overwrite)"
        )


def save(folder: Path, parameters: Mapping[str, Tensor], optimizer: Any, losses: list[float]) -> None:
    """Write the checkpoint, replacing an earlier one."""
    from safetensors.torch import save as to_bytes

    tensors = {f"weight.{name}": value.detach() for name, value in parameters.items()}
    for name, value in parameters.items():
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[value][moment]
    on_cpu = {name: value.to("cpu").contiguous() for name, value in tensors.items()}
    files.write_bytes(folder / FILE, to_bytes(on_cpu, {"losses": json.dumps(losses)}))


def resume(folder: Path, parameters: Mapping[str, Tensor], optimizer: Any) -> list[float]:
    """Load the checkpoint into ``parameters`` and ``optimizer``.

    Returns:
        The losses of the steps so far; empty if there is no checkpoint.

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
                state = {"step": torch.tensor(float(len(losses)))}
                for moment in _MOMENTS:
                    state[moment] = stream.get_tensor(f"{moment}.{name}").to(value.device)
                optimizer.state[value] = state
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it, and training starts again") from error
    return losses
