"""The classes of transformers that write text, by family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from transformers.models.auto import modeling_auto

MAPPINGS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "image-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
}


@dataclass(frozen=True)
class ModelClass:
    """A class of transformers.

    Args:
        name: its name, such as ``LlamaForCausalLM``.
        family: the folder of transformers that holds it, such as ``llama``.
        mapping: the first of :data:`MAPPINGS` that names it.
    """

    name: str
    family: str
    mapping: str

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
    return sorted(found.values(), key=lambda one: (one.family, one.name))
