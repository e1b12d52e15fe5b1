"""The models of the page: the one that it was started with, and others that are loaded when they are needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..guidance import Guidance
from ..serving.errors import RefusedError
from ..serving.requests import model_names

SMALL = {
    "amateur": "smollm2-small",
    "expert": "smollm2-small-positive",
    "anti-expert": "smollm2-small-negative",
    "tuned": "smollm2-small-positive",
    "untuned": "smollm2-small",
    "reward": "smollm2-small-positive",
}
"""Further models for a page that runs a model of the bundled family, with which they share their tokens."""


@dataclass
class Models:
    """The models of one page.

    Args:
        name: name of the model.
        model: a transformers model.
        tokenizer: its tokenizer.
        sources: further models, by the name that guidance uses, as functions that load them.
    """

    name: str
    model: Any
    tokenizer: Any
    sources: Mapping[str, Callable[[], Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._loaded: dict[Any, Any] = {}
        self._loading = threading.Lock()

    def further(self, guidance: Guidance | None) -> dict[str, Any] | None:
        """The further models that ``guidance`` runs; None if it runs none.

        Raises:
            RefusedError: the page was started without one of them.
        """
        names = model_names(guidance)
        for name in sorted(names):
            if name not in self.sources:
                known = ", ".join(sorted(self.sources)) or "none"
                raise RefusedError(
                    f"the guidance needs the model {name!r}, and this server has {known}; start it with "
                    f"textguide playground --extra-model {name}=MODEL"
                )
        return {name: self._load_once(("further", name), self.sources[name]) for name in names} or None

    def denoiser(self, name: str) -> tuple[Any, Any]:
        """A bundled masked diffusion model with its tokenizer.

        Raises:
            RefusedError: no bundled model has that name.
        """
        from .. import diffusion

        if name not in diffusion.bundled():
            raise RefusedError(f"model={name!r} is unknown; use one of {', '.join(diffusion.bundled())}")
        return self._load_once(("diffusion", name), lambda: diffusion.load(name, device="cpu"))

    def captioner(self) -> tuple[Any, Any]:
        """The bundled captioner with its processor."""
        from .. import captioning

        return self._load_once(("captioner",), lambda: captioning.load("drawn-scenes", device="cpu"))

    def _load_once(self, key: Any, load: Callable[[], Any]) -> Any:
        with self._loading:
            if key not in self._loaded:
                self._loaded[key] = load()
            return self._loaded[key]


def small_models(name: str) -> dict[str, Callable[[], Any]]:
    """The models of :data:`SMALL` for a page that runs one of the bundled family; else none."""
    from ..models import bundled, small

    if name != bundled.NAME and name not in small.NAMES:
        return {}
    return {role: partial(small.load, model) for role, model in SMALL.items()}
