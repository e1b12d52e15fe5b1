"""Small language models with SmolLM2's tokens: an amateur, and experts of a mood.

Contrastive decoding needs a weaker model with the same tokens; DExperts and proxy tuning need small tuned ones. These
models read SmolLM2's token embeddings through a narrow projection, which they share. The projected embeddings and
SmolLM2's tokenizer are in this folder, so the models load without any other package.
``scripts/train/small_lms.py`` trains them; ``README.md`` describes the data and the results.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from ...support import files
from ...support.errors import ModelUnavailableError

HOME = Path(__file__).parent / "weights"
TOKENIZER = Path(__file__).parent / "tokenizer"
"""The folder of SmolLM2's tokenizer, the same as in the folder of the bundled model."""
TABLES = ("embeddings-1.safetensors", "embeddings-2.safetensors")
"""The files of the projected embeddings, each with half of the tokens, which keeps a file below 10 MB."""
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
        ModelUnavailableError: a file of the model is missing.
        ValueError: no model has that name.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaForCausalLM

    if name not in NAMES:
        raise ValueError(f"name={name!r} is not a small model; use one of {', '.join(NAMES)}")
    file = f"{NAMES[name]}.safetensors"
    absent = [part for part in (file, "sizes.json", *TABLES) if not (home / part).is_file()]
    if absent:
        raise ModelUnavailableError(f"model {name!r} lacks {absent[0]} in {home}; install textguide again")
    weights = load_file(home / file)
    weights.pop("projection", None)
    sizes = json.loads((home / "sizes.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = LlamaForCausalLM(config(**sizes))
    table = read_table(home)
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
    parts = (f"{NAMES[name]}.safetensors", "sizes.json", *TABLES)
    content = b"".join((HOME / part).read_bytes() for part in parts)
    target = files.cache_root() / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    if not target.is_dir():
        from transformers import AutoTokenizer

        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as unfinished:
            complete = Path(unfinished) / "model"
            load(name).save_pretrained(complete)
            AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(complete)
            try:
                complete.rename(target)
            except OSError:  # another process was faster
                if not target.is_dir():
                    raise
    return target


def write_table(table: Any, home: Path = HOME) -> None:
    """Write the projected embeddings, each row as 16-bit whole numbers and a scale.

    Rounding changes logits by less than 0.001 nats; float32 would take twice the space.

    Args:
        table: (V, D), one row per token.
        home: the folder of the weights.
    """
    import torch
    from safetensors.torch import save_file

    scales = table.abs().amax(1).clamp_min(1e-9) / torch.iinfo(torch.int16).max
    steps = (table / scales[:, None]).round().to(torch.int16)
    half = len(table) // 2
    for part, rows in zip(TABLES, (slice(None, half), slice(half, None)), strict=True):
        save_file({"steps": steps[rows].contiguous(), "scales": scales[rows].contiguous()}, home / part)


def read_table(home: Path = HOME) -> Any:
    """The projected embeddings that :func:`write_table` wrote, float32 (49152, 128)."""
    import torch
    from safetensors.torch import load_file

    parts = [load_file(home / part) for part in TABLES]
    return torch.cat([part["steps"] * part["scales"][:, None] for part in parts])
