"""LoRA adapters of an engine: which of them a request and the branches of its guidance run with.

A branch names an adapter in the same way as a further model; ``base`` is the served model without one. Knows no vLLM
but the names of what it reads.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .extras import ours_of
from .wrapping import wrap_once

FIRST_NUMBER = 1_000_000
"""The number of the first adapter that an engine was started with; a server counts those that it loads from 1."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's ``max_lora_rank``."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, or none.

    Args:
        name: the name that requests use for it.
        number: vLLM's number of it; 0: none, the base model.
        path: its folder.
        is_3d: whether weights of experts are fused, vLLM's ``is_3d_lora_weight``.
    """

    name: str
    number: int = 0
    path: str = ""
    is_3d: bool = False

    @classmethod
    def of(cls, request: Any) -> Adapter:
        """From vLLM's ``LoRARequest``, or None."""
        if request is None:
            return BASE
        return cls(request.lora_name, request.lora_int_id, request.lora_path, request.is_3d_lora_weight)

    def request(self, kind: Any) -> Any:
        """vLLM's ``LoRARequest``, which is ``kind``; None for the base model."""
        return None if not self.number else kind(self.name, self.number, self.path, is_3d_lora_weight=self.is_3d)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the way from process to process."""
        return asdict(self)


BASE = Adapter("base")
_servers: weakref.WeakSet[Any] = weakref.WeakSet()


def remember_adapters(served: Any) -> None:
    """Know the adapters of a server, which it may load and unload while it runs.

    Args:
        served: vLLM's class of the models that a server offers.
    """

    def wrapper(initialize: Callable[..., None]) -> Callable[..., None]:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            initialize(self, *args, **kwargs)
            _servers.add(self)

        return __init__

    wrap_once(served, "__init__", wrapper)


def adapters_of(config: Any) -> dict[str, Adapter]:
    """The adapters of an engine by name, and the base model; empty if the engine has no adapters.

    Args:
        config: vLLM's ``VllmConfig``.
    """
    if getattr(config, "lora_config", None) is None:
        return {}
    adapters = {BASE.name: BASE}
    for number, (name, path) in enumerate((ours_of(config).get("adapters") or {}).items(), start=FIRST_NUMBER):
        adapters[name] = Adapter(name, number, path)
    for server in _servers:
        if server.engine_client.vllm_config.instance_id == config.instance_id:
            adapters |= {name: Adapter.of(request) for name, request in server.lora_requests.items()}
    return adapters


def most_of(config: Any) -> int | None:
    """Number of adapters that may run in one step; None if there are none."""
    lora = getattr(config, "lora_config", None)
    return None if lora is None else int(lora.max_loras)


def find(argument: str, name: Any, adapters: Mapping[str, Adapter]) -> Adapter:
    """The adapter called ``name``.

    Raises:
        ValueError: there is none; the message names the argument and the adapters that exist.
    """
    if not adapters:
        raise ValueError(
            f"{argument}={name!r}: this engine serves no adapters; start it with them, such as textguide serve MODEL "
            "--enable-lora --lora-modules NAME=FOLDER"
        )
    if not isinstance(name, str) or name not in adapters:
        raise ValueError(f"{argument}={name!r} is not an adapter of this engine; those are {', '.join(adapters)}")
    return adapters[name]


def too_many(adapters: Iterable[Adapter], most: int | None) -> str | None:
    """Why requests with these adapters would never run in the same step, as a clause; None if they can."""
    numbers = {adapter.number for adapter in adapters} - {0}
    if most is None or len(numbers) <= most:
        return None
    return f"its requests run with {len(numbers)} adapters, and max_loras is {most}"


def with_adapters(options: Mapping[str, Any], adapters: Mapping[str, str]) -> dict[str, Any]:
    """Options of an engine with adapters.

    Args:
        options: of ``vllm.LLM``; the number of adapters per step and their largest rank default to those of the
            adapters.
        adapters: their folders, by name.

    Raises:
        ValueError: a name cannot be used, or a folder has no adapter.
    """
    ranks = []
    for name, path in adapters.items():
        if not name or name == BASE.name or not name.isprintable():
            raise ValueError(f"adapters: {name!r} cannot be the name of an adapter; choose one such as tuned")
        try:
            ranks.append(int(json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))["r"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"adapters: {name}={path}: the folder has no LoRA adapter ({error})") from None
    largest = max(ranks)
    rank = next((rank for rank in RANKS if rank >= largest), largest)
    return {"max_loras": len(adapters), "max_lora_rank": rank, **options, "enable_lora": True}
