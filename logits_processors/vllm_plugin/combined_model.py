"""A model of vLLM's that combines several, the served one and further ones.

They read the same tokens in the same pass, and their attention layers share block tables and slots. So prompts in
parts, preemption and cached prefixes work for all of them as they do for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import init_vllm_registered_model
from vllm.transformers_utils.config import get_config

from .extras import ours_of
from .further_models import logits_of, models_of

MARK = "textguide further model "
"""Starts the names of a further model's weights, followed by its number and a space."""


class CombinedModel(nn.Module):
    """The served model, followed by those of ``models_of(vllm_config)``.

    Hidden states of all models are concatenated; logits are those of the served model.
    """

    models: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        served = ours_of(vllm_config)["served"]["architectures"]
        paths = models_of(vllm_config)
        self.names = list(paths)
        self.further_logits = logits_of(vllm_config)
        main = init_vllm_registered_model(
            vllm_config, prefix="served", hf_config=vllm_config.model_config.hf_config, architectures=served
        )
        further = []
        for number, path in enumerate(paths.values()):
            config = get_config(path, trust_remote_code=False)
            # vLLM would take a number between dots for that of a layer.
            further.append(init_vllm_registered_model(vllm_config, prefix=f"further_{number}", hf_config=config))
        self.models = nn.ModuleList([main, *further])
        self.sizes = [model.config.hidden_size for model in self.models]
        # vLLM's loader reads these after the weights of the served model.
        self.secondary_weights = [
            DefaultModelLoader.Source(path, revision=None, prefix=f"{MARK}{number} ")
            for number, path in enumerate(paths.values(), start=1)
        ]

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """The served model's embeddings, which vLLM requires of every model."""
        embedded: Tensor = self.models[0].embed_input_ids(input_ids)
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of all models, (tokens, sum of their sizes)."""
        assert inputs_embeds is None, "prompts of embeddings are refused"
        return torch.cat([model(input_ids, positions) for model in self.models], dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """The served model's logits; those of the others are kept for the processor."""
        main, *further = hidden_states.split(self.sizes, dim=-1)
        for name, model, states in zip(self.names, self.models[1:], further, strict=True):
            self.further_logits[name] = model.compute_logits(states)
        logits: Tensor | None = self.models[0].compute_logits(main)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the weights of the served model, followed by those of the others; the names of what was loaded."""
        loaded: set[str] = set()
        for number, group in groupby(weights, _owner):
            names = self.models[number].load_weights(_without_mark(group)) or ()
            loaded |= {f"models.{number}.{name}" for name in names}
        return loaded


def _owner(weight: tuple[str, Tensor]) -> int:
    """The number of the model that a weight belongs to; 0: the served one."""
    name = weight[0]
    return int(name.removeprefix(MARK).split(" ", 1)[0]) if name.startswith(MARK) else 0


def _without_mark(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights:
        yield (name.removeprefix(MARK).split(" ", 1)[1] if name.startswith(MARK) else name), tensor
