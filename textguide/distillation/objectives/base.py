"""The interface of objectives, and what they compute a loss from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

from torch import Tensor


class Reading(Protocol):
    """A batch of texts, read by the model in training and by its teacher. A pass only runs when it is needed.

    ``P`` positions predict one token each; the positions of a text are consecutive.
    """

    scale: float
    """γ of this step."""

    @property
    def tokens(self) -> Tensor:
        """The token after each position, (P,)."""

    @property
    def texts(self) -> Tensor:
        """The number of the text that each position belongs to, from 0, (P,)."""

    @property
    def weights(self) -> Tensor:
        """The weight of each text, (texts,); the mean over all training texts is 1."""

    @property
    def student(self) -> Tensor:
        """Log-probabilities of the model in training, (P, V), with gradient."""

    @property
    def target(self) -> Tensor:
        """Guided log-probabilities, (P, V)."""

    @property
    def original(self) -> Tensor:
        """Log-probabilities of the model before training, (P, V)."""

    @property
    def branches(self) -> Tensor:
        """Log-probabilities of the teacher's branches, the conditional one first, (n, P, V)."""

    def with_other_prompts(self) -> Reading:
        """The same continuations after the prompts of other texts of the batch."""


class Objective(ABC):
    """A loss to train an adapter with."""

    name: ClassVar[str]
    needs_contrast: ClassVar[bool] = False
    """Whether it only works with classifier-free guidance, because it uses γ and its two branches."""
    needs_prompts: ClassVar[bool] = False
    """Whether texts need a prompt, which is not trained on."""

    @abstractmethod
    def loss(self, reading: Reading) -> Tensor:
        """The loss as a scalar, in nats per token or per text."""


def picked(logp: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token, (P,)."""
    return logp.gather(-1, tokens[:, None])[:, 0]


def by_text(values: Tensor, reading: Reading) -> Tensor:
    """Sums over the positions of each text, (texts,)."""
    return values.new_zeros(len(reading.weights)).index_add(0, reading.texts, values)


def weighted_mean(values: Tensor, reading: Reading) -> Tensor:
    """The mean over positions, each weighted by its text."""
    return (values * reading.weights[reading.texts]).mean()
