"""Long prompts in chunks: each pass reads some tokens, so that what it computes for them fits into memory.

A pass over a whole prompt keeps the activations of all of its tokens at once, and masks and scores of attention grow
with the square of its length. Chunks continue the cache as generated tokens do, and give the same logits up to
rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..support.checks import whole_number
from .model_adapter import ModelAdapter

MEMORY = 1 << 30
"""Bytes that the activations of a pass may take if nothing else is chosen; only long prompts need more."""
LEAST = 256
"""Chunks are not made shorter than this because of memory: every pass reads all weights."""


@dataclass(frozen=True)
class Chunking:
    """How prompts are cut into chunks.

    Args:
        size: number of tokens per chunk and row, as transformers' ``prefill_chunk_size``; None: as many as fit into
            ``memory``.
        memory: bytes that the activations of a pass may take, by an estimate; None: do not cut prompts.
        progress: called before the first chunk of a prompt that is cut and after each of its chunks, with the number
            of tokens that were read and that are to be read.

    Raises:
        ValueError: a value is not a whole number of 1 or more.
    """

    size: int | None = None
    memory: int | None = None
    progress: Callable[[int, int], Any] | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            whole_number("prefill_chunk_size", self.size, 1)
        if self.memory is not None:
            whole_number("prefill_memory", self.memory, 1)

    def length(self, known: ModelAdapter, rows: int, tokens: int, read: int = 0, padded: bool = True) -> int:
        """The number of tokens per pass for ``rows`` rows of ``tokens`` new tokens, after ``read`` earlier ones.

        A pass over whole rows without padding needs no attention mask, while chunks do.

        Raises:
            ValueError: ``size`` is less than ``tokens``, and the model has to read them in one pass.
        """
        if self.size is not None and self.size < tokens:
            reason = known.why_not_in_chunks(read + self.size, read + tokens)
            if reason:
                raise ValueError(f"prefill_chunk_size={self.size}: {known.name} {reason}; leave it out")
            return self.size
        if self.size is not None or self.memory is None or tokens <= LEAST:
            return tokens
        whole = bytes_per_token(known, tokens, masked=padded or read > 0)
        if rows * tokens * whole <= self.memory:
            return tokens
        fitting = max(self.memory // (rows * bytes_per_token(known, read + tokens)), LEAST)
        if fitting >= tokens or known.why_not_in_chunks(read + fitting, read + tokens):
            return tokens
        return fitting

    def report(self, done: int, total: int) -> None:
        """Call :attr:`progress`, if there is one."""
        if self.progress is not None:
            self.progress(done, total)


ONE_PASS = Chunking()
"""Prompts are not cut."""
FITTING = Chunking(memory=MEMORY)
"""Long prompts are cut so that a pass fits into memory."""


def bytes_per_token(known: ModelAdapter, length: int, masked: bool = True) -> int:
    """An estimate of what a pass keeps in memory per new token and row, besides keys and values.

    Args:
        length: number of tokens that the last new token attends to.
        masked: whether attention needs a mask. "eager" always does.
    """
    config = known.text_config
    size = next(known.base.parameters()).element_size()
    width = getattr(config, "hidden_size", None) or known.base.get_input_embeddings().weight.shape[-1]
    inner = getattr(config, "intermediate_size", None)
    inner = inner if isinstance(inner, int) else 4 * width
    inner *= getattr(config, "num_experts_per_tok", None) or 1
    # The residual stream, its norm, queries, keys, values, the output of attention; and inside the MLP, with a gate.
    values = 6 * width + 3 * inner
    if not known.accepts("logits_to_keep"):
        values += known.vocab_size or 0
    # A mask of booleans and the same in the dtype of the scores; "eager" also has scores and weights of every head.
    is_eager = config._attn_implementation == "eager"
    attention = length * (1 + size) if masked or is_eager else 0
    if is_eager:
        attention += 2 * size * length * (getattr(config, "num_attention_heads", None) or 1)
    return int(values * size + attention)
