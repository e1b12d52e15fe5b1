"""Tokens of one vocabulary as tokens of another, so that a text-only model with its own can guide a captioner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..constraints import Vocabulary

LEAST = 0.9
"""Share of the captioner's tokens that have to map."""


@dataclass(frozen=True)
class VocabularyMap:
    """For every token of a captioner the token of a text-only model that adds the same bytes to a text.

    Args:
        index: id in the text-only model for every id of the captioner, long (V,); −1 where there is none.
        end: the captioner's end token.
        ends: ids of the text-only model whose probability goes to ``end``: its end tokens, and blanks with a newline.
        end_input: what the text-only model reads where the captioner wrote its end token.
    """

    index: Tensor
    end: int
    ends: tuple[int, ...]
    end_input: int

    @classmethod
    def between(cls, tokenizer: Any, size: int, other: Any, other_size: int, least: float = LEAST) -> VocabularyMap:
        """The map from ``tokenizer`` (of the captioner, with ``size`` logits) to ``other`` (of the text-only model).

        Raises:
            ValueError: less than ``least`` of the captioner's tokens map, or a tokenizer cannot be understood or has
                no end token.
        """
        own, theirs = Vocabulary.of(tokenizer, size), Vocabulary.of(other, other_size)
        if not own.ends or not theirs.ends:
            raise ValueError("language-model guidance needs tokenizers with an end token; set eos_token on both")
        place: dict[bytes, int] = {}
        for token, text in enumerate(theirs.tokens):
            if text:
                place.setdefault(text, token)
        same = own.tokens == theirs.tokens
        index = [-1 if not text else token if same else place.get(text, -1) for token, text in enumerate(own.tokens)]
        known = [token for token, text in enumerate(own.tokens) if text]
        mapped = sum(index[token] >= 0 for token in known)
        if mapped < least * len(known):
            raise ValueError(
                f"only {mapped} of the captioner's {len(known)} tokens are tokens of the text-only model "
                f"({mapped / max(1, len(known)):.0%}; {least:.0%} are needed); use a model whose tokenizer is nearer"
            )
        newlines = {token for token, text in enumerate(theirs.tokens) if b"\n" in text and not text.strip()}
        end = min(own.ends)
        index = [-1 if target in newlines else target for target in index]
        ends = tuple(sorted(theirs.ends | newlines))
        return cls(torch.tensor(index), end, ends, min(theirs.ends))

    def inputs(self, ids: Tensor) -> Tensor:
        """The captioner's token ids as ids of the text-only model; what has none is read as its end token."""
        index = self.index.to(ids.device)
        read = index[ids]
        return torch.where(read < 0, self.end_input, read)

    def distribution(self, logits: Tensor) -> Tensor:
        """Next-token log-probabilities (…, V) over the captioner's tokens, from the text-only model's logits (…, V′).

        ``s[end] = logsumexp(s[end], s[newline])`` and ``s[newline] = −inf``; tokens without a partner get −inf.
        """
        distribution = torch.log_softmax(logits.float(), dim=-1)
        index = self.index.to(logits.device)
        mapped = distribution[..., index.clamp(min=0)].masked_fill(index < 0, float("-inf"))
        ending = distribution[..., torch.tensor(self.ends, device=logits.device)].logsumexp(-1)
        mapped[..., self.end] = ending
        return mapped
