"""The classifier of a vLLM engine, named when it starts. Knows no vLLM but where its configuration keeps extras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from textguide.classifiers import CausalClassifier, Classifier, resolve
from textguide.guidance import CAIF, Step
from textguide.step.reweighting import Reweighter
from textguide.step.texts import Alphabet

from .extras import ours_of


def classifier_of(config: Any) -> Classifier | None:
    """The classifier that an engine was started with, None where there is none.

    Args:
        config: vLLM's ``VllmConfig``, whose ``additional_config`` holds its name.

    Raises:
        ValueError: nothing has that name, or it runs on the language model itself.
    """
    name = ours_of(config).get("classifier")
    return None if name is None else named(name)


@lru_cache(maxsize=4)
def named(name: str) -> Classifier:
    """The classifier called ``name``, loaded once a process.

    Raises:
        ValueError: nothing has that name, or it runs on the language model itself.
    """
    try:
        classifier = resolve(name)
    except (AttributeError, TypeError) as error:  # one that asks the language model, which is vLLM's here
        raise ValueError(f"classifier={name!r} runs on the language model, which vLLM holds; name another") from error
    if isinstance(classifier, CausalClassifier):
        raise ValueError(f"classifier={name!r} keeps a cache a row, which vLLM's batches would mix up; name another")
    return classifier


class Reweighting:
    """Reweights the candidates of one engine's requests.

    Args:
        classifier: asked about the candidates.
        tokenizer: of the language model; called once.
        size: its number of tokens.
    """

    def __init__(self, classifier: Classifier, tokenizer: Callable[[], Any], size: int) -> None:
        self.classifier = classifier
        self._tokenizer, self._size = tokenizer, size
        self._alphabet: Alphabet | None = None

    def row(self, caif: Sequence[CAIF], horizon: int) -> ReweightedRow:
        """A request that begins."""
        if self._alphabet is None:
            self._alphabet = Alphabet(self._tokenizer(), self._size)
        size = self._size
        # What a Reweighter reads of a model is the size of its vocabulary.
        model = SimpleNamespace(
            config=SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(vocab_size=size))
        )
        reweighter = Reweighter(list(caif), self._alphabet.tokenizer, model, alphabet=self._alphabet)
        return ReweightedRow(reweighter, horizon)


class ReweightedRow:
    """The classifier's view of one request, which grows with its text."""

    def __init__(self, reweighter: Reweighter, horizon: int) -> None:
        self.reweighter, self.horizon = reweighter, horizon
        self._read: list[int] | None = None

    def __call__(self, logp: Tensor, prompt: Callable[[], list[int]], written: list[int]) -> Tensor:
        """Log-probabilities (1, V) with the candidates reweighted, from ``logp`` (1, V) behind ``written``."""
        if self._read is not None and written[: len(self._read)] == self._read:
            for token in written[len(self._read) :]:
                self.reweighter.append([token])
        else:
            self.reweighter.begin([prompt()], [list(written)])
        self._read = list(written)
        return self.reweighter(logp, Step.at(len(written), self.horizon), len(written), [0])[0]
