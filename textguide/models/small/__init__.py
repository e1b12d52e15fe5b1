"""Small language models with SmolLM2's tokens, for use together with it: an amateur, and experts of a mood.

Contrastive decoding needs a weaker model with the same tokens; DExperts and proxy tuning need small tuned ones. These
models read SmolLM2's token embeddings through a narrow projection, so that their own weights are small, and therefore
need the bundled model. ``scripts/train/small_lms.py`` trains them; ``README.md`` describes the data and the results.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...support import files
from ...support.errors import ModelUnavailableError
from .. import bundled

HOME = Path(__file__).parent / "weights"
NAMES = {
    "smollm2-small": "base",
    "smollm2-small-positive": "positive",
    "smollm2-small-negative": "negative",
}
"""Their names in :func:`textguide.load` and ``--extra-model``, and their files."""


def config(**sizes: int) -> Any:
    """The configuration of the models.

    Args:
        **sizes: fields of transformers' ``LlamaConfig`` other than those of the vocabulary.
    """
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=49152,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        **sizes,
    )


def load(name: str, *, device: str | None = None, dtype: Any = None, home: Path = HOME) -> Any:
    """Load the model ``name``, in evaluation mode.

    Args:
        name: one of :data:`NAMES`.
        device: the device of the model; default: the CPU.
        dtype: the dtype of the weights; default: float32.
        home: the folder of the weights.

    Raises:
        ModelUnavailableError: the bundled model, whose embeddings it reads, is not available.
        ValueError: no model has that name.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaForCausalLM

    if name not in NAMES:
        raise ValueError(f"name={name!r} is not a small model; use one of {', '.join(NAMES)}")
    weights = load_file(home / f"{NAMES[name]}.safetensors")
    sizes = json.loads((home / "sizes.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = LlamaForCausalLM(config(**sizes))
    table = embeddings() @ weights.pop("projection").float()
    state = {key: value.float() for key, value in weights.items()}
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # no file contains its buffers
    state |= {"model.embed_tokens.weight": table, "lm_head.weight": table}
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    return model.to(device=device, dtype=dtype or torch.float32).eval()


def folder(name: str) -> Path:
    """A folder of the model ``name`` in transformers' format, for engines that read files.

    It is written once, into the cache.

    Raises:
        ModelUnavailableError: as for :func:`load`.
        ValueError: no model has that name.
    """
    if name not in NAMES:
        raise ValueError(f"name={name!r} is not a small model; use one of {', '.join(NAMES)}")
    content = b"".join((HOME / file).read_bytes() for file in (f"{NAMES[name]}.safetensors", "sizes.json"))
    target = files.cache_root() / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    if not target.is_dir():
        from transformers import AutoTokenizer

        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as unfinished:
            complete = Path(unfinished) / "model"
            load(name).save_pretrained(complete)
            AutoTokenizer.from_pretrained(bundled.folder()).save_pretrained(complete)
            try:
                complete.rename(target)
            except OSError:  # another process was faster
                if not target.is_dir():
                    raise
    return target


@lru_cache(maxsize=1)
def embeddings() -> Any:
    """SmolLM2's token embeddings, float32 (49152, 576).

    Raises:
        ModelUnavailableError: the bundled model is not available.
    """
    from safetensors import safe_open

    folder = bundled.folder()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            if "model.embed_tokens.weight" in opened.keys():  # noqa: SIM118 (it is not a mapping)
                return opened.get_tensor("model.embed_tokens.weight").float()
    raise ModelUnavailableError(f"{folder} has no token embeddings; load the bundled model with refresh=True")
