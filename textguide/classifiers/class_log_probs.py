"""Class log-probabilities of the text so far, for guidances that use them to choose between branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..guidance.base import BranchGuidance
from .resolving import RESOLVERS
from .reweighting import Reading
from .texts import Alphabet


class ClassLogProbs:
    """The classifier of one guidance, and the texts of the rows that it reads.

    Args:
        guidance: has a ``classifier``, ``include_prompt`` and the ``classes`` of its branches.
        tokenizer: the language model's tokenizer.
        model: the language model, for classifiers that are derived from it.

    Raises:
        ValueError: the classifier cannot be resolved, or it does not have one of the classes.
    """

    def __init__(self, guidance: Any, tokenizer: Any, model: Any) -> None:
        if tokenizer is None:
            raise ValueError("tokenizer=None: a classifier reads text; pass the tokenizer of the model")
        self._reading = Reading(RESOLVERS["classifier"](guidance.classifier, model, tokenizer), guidance.include_prompt)
        scorer: Any = self._reading.scorer
        self._columns = [scorer.index(label) for label in guidance.classes]
        size = model.config.get_text_config(decoder=True).vocab_size
        self._alphabet = Alphabet(tokenizer, size)

    def begin(self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]] | None = None) -> None:
        """Start a batch with the token ids of every prompt and of the text already written after each."""
        self._reading.begin(prompts, [[] for _ in prompts] if written is None else written, self._alphabet)

    def append(self, tokens: Sequence[int]) -> None:
        """Append a token to every row."""
        self._reading.append(tokens)

    def select(self, index: Sequence[int]) -> None:
        """Let row ``r`` continue the text of row ``index[r]``."""
        self._reading.select(index)

    def of(self, rows: Sequence[int]) -> Tensor:
        """Log-probability of each branch's class given the texts of ``rows``, (n, r), on the CPU."""
        return self._reading.values(rows)[:, self._columns].T


def class_log_probs(guidance: BranchGuidance | None, tokenizer: Any, model: Any) -> ClassLogProbs | None:
    """The :class:`ClassLogProbs` of a run under ``guidance``, or None if the guidance does not read them."""
    if guidance is None or not guidance.reads_class_log_probs:
        return None
    return ClassLogProbs(guidance, tokenizer, model)
