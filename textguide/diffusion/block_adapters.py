"""Language models that an adapter made masked diffusion models of blocks."""

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
"""What stands beside such an adapter: the model that it belongs to, its blocks and its mask token."""


def is_adapted(folder: Any) -> bool:
    """Whether ``folder`` holds an adapter that makes a language model fill masks."""
    return (Path(folder) / CARD).is_file()


def load_adapted(folder: Any, device: str | None, dtype: Any) -> tuple[Any, Any]:
    """The language model with the adapter in its weights, and its tokenizer with the mask token.

    Raises:
        MissingExtraError: the package ``peft`` is not installed.
        ModelUnavailableError: the folder is damaged, or the adapter belongs to another version of the model.
    """
    try:
        facts = json.loads((Path(folder) / CARD).read_text(encoding="utf-8"))
        base, size, mask, known = (facts[name] for name in ("base", "block_size", "mask_token", "model_fingerprint"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailableError(f"{Path(folder) / CARD} is damaged ({error}); write the adapter again") from error
    model, tokenizer = load(base, device=device, dtype=dtype)
    if model_fingerprint(model) != known:
        raise ModelUnavailableError(
            f"the adapter {str(folder)!r} was trained for another {base!r} than the one here; install the version "
            "that its card names"
        )
    return of_blocks(merged(model, folder), tokenizer, size, mask)


def of_blocks(model: Any, tokenizer: Any, block_size: int, mask_token: str) -> tuple[Any, Any]:
    """Let a decoder be read in blocks, in place: it and its tokenizer say so from now on.

    What stands at a position is read in front of it, as in the language model that it was (shifted targets, arXiv
    2410.17891), and attention is causal between blocks (arXiv 2503.09573): the kind ``fast-dllm``.

    Args:
        mask_token: a token of the vocabulary that texts do not hold.

    Raises:
        ValueError: the tokenizer does not have that token.
    """
    mask = tokenizer.convert_tokens_to_ids(mask_token)
    if mask is None or tokenizer.convert_ids_to_tokens(mask) != mask_token:
        raise ValueError(f"mask_token={mask_token!r} is no token of the tokenizer; name one that it has")
    tokenizer.mask_token = mask_token
    model.config.model_type = "fast-dllm"
    model.config.block_size, model.config.mask_token_id = block_size, mask
    return model, tokenizer


def noisy_and_clean(length: int, block_size: int, device: Any = None) -> tuple[Tensor, Tensor, Tensor]:
    """How a text with masks and the same text without are read in one pass (arXiv 2503.09573, section 3.3).

    A row is the text with masks, then the text without, ``length`` tokens each. A masked block sees itself and, in
    front of it, blocks without masks: what it sees when it is filled.

    Returns:
        What each position sees, bool (2 length, 2 length); its place in the text, (2 length,); and for each place the
        position at which the token there is predicted, (length,): the one in front of it, which for the first of a
        block lies in the text without masks.
    """
    place = torch.arange(length, device=device)
    block = place // block_size
    same, earlier = block[:, None] == block[None, :], block[None, :] < block[:, None]
    seen = torch.cat([torch.cat([same, earlier], 1), torch.cat([torch.zeros_like(same), same | earlier], 1)])
    before = torch.where(place % block_size == 0, length + place - 1, place - 1)
    before[0] = 0  # nothing stands in front of the first token
    return seen, torch.cat([place, place]), before
