"""Language models that an adapter turns into masked diffusion models of blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..forward.low_rank import merged
from ..forward.steering_vectors import model_fingerprint
from ..models.loading import load
from ..support.errors import ModelUnavailableError

CARD = "diffusion.json"
"""File in the folder of such an adapter that names the base model, the size of its blocks and its mask token."""


def is_block_adapter(folder: Any) -> bool:
    """Whether ``folder`` contains an adapter that makes a language model fill masks."""
    return (Path(folder) / CARD).is_file()


def load_block_adapter(folder: Any, device: str | None, dtype: Any) -> tuple[Any, Any]:
    """The language model with the adapter merged into its weights, and its tokenizer with the mask token.

    Raises:
        MissingExtraError: the package ``peft`` is not installed.
        ModelUnavailableError: the folder is damaged, or the adapter belongs to another version of the model.
    """
    try:
        card = json.loads((Path(folder) / CARD).read_text(encoding="utf-8"))
        base = card["base"]
        block_size = card["block_size"]
        mask_token = card["mask_token"]
        fingerprint = card["model_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailableError(f"{Path(folder) / CARD} is damaged ({error}); write the adapter again") from error
    model, tokenizer = load(base, device=device, dtype=dtype)
    if model_fingerprint(model) != fingerprint:
        raise ModelUnavailableError(
            f"the adapter {str(folder)!r} was trained for another {base!r} than the one here; install the version "
            "that its card names"
        )
    return as_block_model(merged(model, folder), tokenizer, block_size, mask_token)


def as_block_model(model: Any, tokenizer: Any, block_size: int, mask_token: str) -> tuple[Any, Any]:
    """Mark a decoder, in place, as one that is read in blocks.

    The logits of a position are those of the position before it, as in the language model that it was (shifted
    targets, arXiv 2410.17891), and attention is causal between blocks (arXiv 2503.09573): the kind ``fast-dllm``.

    Args:
        mask_token: a token of the vocabulary that does not occur in texts.

    Raises:
        ValueError: the tokenizer does not have that token.
    """
    mask = tokenizer.convert_tokens_to_ids(mask_token)
    if mask is None or tokenizer.convert_ids_to_tokens(mask) != mask_token:
        raise ValueError(f"mask_token={mask_token!r} is not a token of the tokenizer; name one that it has")
    tokenizer.mask_token = mask_token
    model.config.model_type = "fast-dllm"
    model.config.block_size = block_size
    model.config.mask_token_id = mask
    return model, tokenizer


def noisy_and_clean(length: int, block_size: int, device: Any = None) -> tuple[Tensor, Tensor, Tensor]:
    """How a text with masks and the same text without masks are read in one pass (arXiv 2503.09573, section 3.3).

    A row is the text with masks, then the text without, ``length`` tokens each. A masked block attends to itself and to
    the unmasked blocks before it, which is what it attends to when it is filled.

    Returns:
        What each position attends to, bool (2 length, 2 length); the position ids, (2 length,); and for each position
        of the text, the position in the row whose logits predict it, (length,): the one before it, which for the first
        position of a block is in the text without masks.
    """
    place = torch.arange(length, device=device)
    block = place // block_size
    same = block[:, None] == block[None, :]
    earlier = block[None, :] < block[:, None]
    noisy_rows = torch.cat([same, earlier], 1)
    clean_rows = torch.cat([torch.zeros_like(same), same | earlier], 1)
    before = torch.where(place % block_size == 0, length + place - 1, place - 1)
    before[0] = 0  # nothing comes before the first token
    return torch.cat([noisy_rows, clean_rows]), torch.cat([place, place]), before
