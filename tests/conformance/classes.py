"""The classes of transformers that write text, by family."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import transformers
from transformers.models.auto import modeling_auto

MAPPINGS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "image-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
}


# The same class with other settings, where they change the mechanism.
VARIANTS: dict[tuple[str, str], dict[str, Any]] = {
    ("FalconForCausalLM", "ALiBi"): {"alibi": True},
    ("LlamaForCausalLM", "dynamic NTK"): {
        "max_position_embeddings": 96,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    },
    ("MistralForCausalLM", "no window"): {"sliding_window": None},
    ("Phi3ForCausalLM", "sliding window"): {"sliding_window": 5},
    ("Starcoder2ForCausalLM", "sliding window"): {"sliding_window": 5},
    ("Phi3ForCausalLM", "long rope"): {
        "original_max_position_embeddings": 12,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 12,
            "short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.0, 4.0],
        },
    },
    ("Qwen2ForCausalLM", "sliding window"): {
        "use_sliding_window": True, "sliding_window": 5, "num_hidden_layers": 3, "max_window_layers": 1,
    },
}  # fmt: skip


@dataclass(frozen=True)
class ModelClass:
    """A class of transformers.

    Args:
        name: its name, such as ``LlamaForCausalLM``.
        family: the folder of transformers that holds it, such as ``llama``.
        mapping: the first of :data:`MAPPINGS` that names it.
        variant: which of :data:`VARIANTS`, or nothing.
    """

    name: str
    family: str
    mapping: str
    variant: str = ""

    @property
    def title(self) -> str:
        """The name and the variant."""
        return f"{self.name} ({self.variant})" if self.variant else self.name

    def load(self) -> Any:
        """The class itself."""
        return getattr(transformers, self.name)


def all_classes() -> list[ModelClass]:
    """Every class of the three mappings once, by family."""
    found: dict[str, ModelClass] = {}
    for mapping, variable in MAPPINGS.items():
        for name in getattr(modeling_auto, variable).values():
            if name not in found:
                family = getattr(transformers, name).__module__.split(".")[-2]
                found[name] = ModelClass(name, family, mapping)
    variants = [replace(found[name], variant=variant) for name, variant in VARIANTS]
    return sorted([*found.values(), *variants], key=lambda one: (one.family, one.title))
