"""What a classifier says of the text so far: for guidances that choose between branches by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..classifiers import RESOLVERS
from ..guidance.base import BranchGuidance
from .reweighting import Reading
from .texts import Alphabet


class ClassLogProbs:
    """The classifier of one guidance, and the texts of the rows that it reads.

    Args:
        guidance: has a ``classifier``, ``include_prompt`` and the ``classes`` of its branches.
        tokenizer: the language model's tokenizer.
        model: the language model, for classifiers that are made from it.

    Raises:
        ValueError: the classifier cannot be resolved, or lacks a class.
    """

    def __init__(self, guidance: Any, tokenizer: Any, model: Any) -> None:
        if tokenizer is None:
            raise ValueError("tokenizer=None: a classifier reads text; give the tokenizer of the model")
        self._reading = Reading(RESOLVERS["classifier"](guidance.classifier, model, tokenizer), guidance.include_prompt)
        scorer: Any = self._reading.scorer
        self._columns = [scorer.index(label) for label in guidance.classes]
        size = model.config.get_text_config(decoder=True).vocab_size
        self._alphabet = Alphabet(tokenizer, size)

    def begin(self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]] | None = None) -> None:
        """Start a batch: the token ids of every prompt, and what was already written behind each."""
        self._reading.begin(prompts, [[] for _ in prompts] if written is None else written, self._alphabet)

    def append(self, tokens: Sequence[int]) -> None:
        """Write a token behind every row."""
        self._reading.append(tokens)

    def select(self, index: Sequence[int]) -> None:
        """Let row ``r`` go on from what row ``index[r]`` has written."""
        self._reading.select(index)

    def of(self, rows: Sequence[int]) -> Tensor:
        """Log-probability of each branch's class given the texts of ``rows``, (n, r), on the CPU."""
        return self._reading.values(rows)[:, self._columns].T


def class_log_probs(guidance: BranchGuidance | None, tokenizer: Any, model: Any) -> ClassLogProbs | None:
    """The :class:`ClassLogProbs` of a run under ``guidance``; None where it asks for none."""
    return (
        ClassLogProbs(guidance, tokenizer, model) if guidance is not None and guidance.reads_class_log_probs else None
    )
