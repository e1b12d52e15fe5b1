"""The classifier of a vLLM engine, which is named when the engine starts. Knows no vLLM but its extra settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from textguide.classifiers import CausalClassifier, Classifier, resolve
from textguide.classifiers.reweighting import Reweighter
from textguide.classifiers.texts import Alphabet
from textguide.guidance import CAIF, Step

from .extras import ours_of


def classifier_of(config: Any) -> Classifier | None:
    """The classifier that an engine was started with; None if it was started without one.

    Args:
        config: vLLM's ``VllmConfig``, whose ``additional_config`` holds its name.

    Raises:
        ValueError: there is no such classifier, or it runs on the language model itself.
    """
    name = ours_of(config).get("classifier")
    return None if name is None else named(name)


@lru_cache(maxsize=4)
def named(name: str) -> Classifier:
    """The classifier called ``name``, loaded once per process.

    Raises:
        ValueError: there is no such classifier, or it runs on the language model itself.
    """
    try:
        classifier = resolve(name)
    except (AttributeError, TypeError) as error:  # it calls the language model, which is None here
        raise ValueError(f"classifier={name!r} runs on the language model, which vLLM owns; name another") from error
    if isinstance(classifier, CausalClassifier):
        raise ValueError(f"classifier={name!r} keeps a cache per row, which vLLM's batches would mix up; name another")
    return classifier


class Reweighting:
    """Reweights the candidates of one engine's requests.

    Args:
        classifier: scores the candidates.
        tokenizer: returns that of the language model; called once.
        size: its number of tokens.
    """

    def __init__(self, classifier: Classifier, tokenizer: Callable[[], Any], size: int) -> None:
        self.classifier = classifier
        self._tokenizer = tokenizer
        self._size = size
        self._alphabet: Alphabet | None = None

    def row(self, caif: Sequence[CAIF], horizon: int) -> ReweightedRow:
        """The classifier's view of a new request."""
        if self._alphabet is None:
            self._alphabet = Alphabet(self._tokenizer(), self._size)
        size = self._size
        # A Reweighter only reads the size of the vocabulary from its model.
        model = SimpleNamespace(
            config=SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(vocab_size=size))
        )
        reweighter = Reweighter(list(caif), self._alphabet.tokenizer, model, alphabet=self._alphabet)
        return ReweightedRow(reweighter, horizon)


class ReweightedRow:
    """The classifier's view of one request, which grows with its text."""

    def __init__(self, reweighter: Reweighter, horizon: int) -> None:
        self.reweighter = reweighter
        self.horizon = horizon
        self._read: list[int] | None = None

    def __call__(self, logp: Tensor, prompt: Callable[[], list[int]], written: list[int]) -> Tensor:
        """Log-probabilities (1, V) with the candidates reweighted, from ``logp`` (1, V) after ``written``."""
        if self._read is not None and written[: len(self._read)] == self._read:
            for token in written[len(self._read) :]:
                self.reweighter.append([token])
        else:
            self.reweighter.begin([prompt()], [list(written)])
        self._read = list(written)
        return self.reweighter(logp, Step.at(len(written), self.horizon), len(written), [0])[0]
