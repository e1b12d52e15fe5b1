"""A map between two vocabularies, so that a text-only model with its own tokenizer can guide a captioner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..constraints import Vocabulary

LEAST = 0.9
"""The smallest share of the captioner's tokens that must be in the map."""


@dataclass(frozen=True)
class VocabularyMap:
    """For every token of a captioner, the token of a text-only model with the same bytes.

    Args:
        index: id in the text-only model for every id of the captioner, long (V,); −1 if there is none.
        end: the captioner's end token.
        ends: ids of the text-only model whose probability goes to ``end``: its end tokens, and blanks with a newline.
        end_input: the id that the text-only model reads for the captioner's end token.
    """

    index: Tensor
    end: int
    ends: tuple[int, ...]
    end_input: int

    @classmethod
    def between(cls, tokenizer: Any, size: int, other: Any, other_size: int, least: float = LEAST) -> VocabularyMap:
        """Create the map from the captioner's tokenizer to that of the text-only model.

        Args:
            tokenizer: the captioner's tokenizer.
            size: number of the captioner's logits.
            other: the text-only model's tokenizer.
            other_size: number of its logits.
            least: the smallest share of the captioner's tokens that must be in the map.

        Raises:
            ValueError: fewer tokens are in the map, or the bytes of a tokenizer's tokens are unknown, or it does not
                have an end token.
        """
        own = Vocabulary.of(tokenizer, size)
        theirs = Vocabulary.of(other, other_size)
        if not own.ends or not theirs.ends:
            raise ValueError("language-model guidance needs tokenizers with an end token; set eos_token on both")
        index = _same_bytes(own.tokens, theirs.tokens)
        known = [token for token, text in enumerate(own.tokens) if text]
        mapped = sum(index[token] >= 0 for token in known)
        if mapped < least * len(known):
            raise ValueError(
                f"only {mapped} of the captioner's {len(known)} tokens are tokens of the text-only model "
                f"({mapped / max(1, len(known)):.0%}; {least:.0%} are needed); use a model with a closer tokenizer"
            )
        # Captions end where a text-only model would start a new line.
        newlines = {token for token, text in enumerate(theirs.tokens) if b"\n" in text and not text.strip()}
        index = [-1 if target in newlines else target for target in index]
        ends = tuple(sorted(theirs.ends | newlines))
        return cls(torch.tensor(index), min(own.ends), ends, min(theirs.ends))

    def inputs(self, ids: Tensor) -> Tensor:
        """The captioner's token ids as ids of the text-only model; ids that are not in the map become its end token."""
        mapped = self.index.to(ids.device)[ids]
        return torch.where(mapped < 0, self.end_input, mapped)

    def distribution(self, logits: Tensor) -> Tensor:
        """Next-token log-probabilities (…, V) over the captioner's tokens, from the text-only model's logits (…, V′).

        ``s[end] = logsumexp(s[end], s[newline])`` and ``s[newline] = −inf``; tokens that are not in the map get −inf.
        """
        distribution = torch.log_softmax(logits.float(), dim=-1)
        index = self.index.to(logits.device)
        mapped = distribution[..., index.clamp(min=0)].masked_fill(index < 0, float("-inf"))
        ending = distribution[..., torch.tensor(self.ends, device=logits.device)].logsumexp(-1)
        mapped[..., self.end] = ending
        return mapped


def _same_bytes(own: Sequence[bytes], theirs: Sequence[bytes]) -> list[int]:
    """For every token in ``own``, the token in ``theirs`` with the same bytes; −1 if there is none.

    Special tokens, which have no bytes, are never in the map.
    """
    if own == theirs:
        # Several tokens may have the same bytes; each is mapped to itself.
        return [token if text else -1 for token, text in enumerate(own)]
    first: dict[bytes, int] = {}
    for token, text in enumerate(theirs):
        if text:
            first.setdefault(text, token)
    return [first.get(text, -1) for text in own]
