"""What an objective is, and what it may look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

from torch import Tensor


class Reading(Protocol):
    """A batch of texts, read by the model in training and by its teacher; each pass is made when it is asked for.

    ``P`` positions predict a token each; those of a text stand side by side.
    """

    scale: float
    """γ of this step."""

    @property
    def tokens(self) -> Tensor:
        """The token behind each position, (P,)."""

    @property
    def texts(self) -> Tensor:
        """The number of the text that each position belongs to, from 0, (P,)."""

    @property
    def weights(self) -> Tensor:
        """The weight of each text; their mean over all training texts is 1, (texts,)."""

    @property
    def student(self) -> Tensor:
        """Log-probabilities of the model in training, (P, V), with gradient."""

    @property
    def target(self) -> Tensor:
        """Guided log-probabilities, (P, V)."""

    @property
    def before(self) -> Tensor:
        """Log-probabilities of the model that training began with, (P, V)."""

    @property
    def branches(self) -> Tensor:
        """Log-probabilities of the teacher's branches, the conditional one first, (n, P, V)."""

    def wrong(self) -> Reading:
        """The same continuations behind the prompts of other texts of the batch."""


class Objective(ABC):
    """A loss."""

    name: ClassVar[str]
    needs_contrast: ClassVar[bool] = False
    """Whether the guidance has to be classifier-free guidance, whose two branches and γ it takes."""
    needs_prompts: ClassVar[bool] = False
    """Whether a text has to have a prompt, which is not trained on."""

    @abstractmethod
    def loss(self, reading: Reading) -> Tensor:
        """A scalar, in nats a token or a text."""


def picked(logp: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token, (P,)."""
    return logp.gather(-1, tokens[:, None])[:, 0]


def by_text(values: Tensor, reading: Reading) -> Tensor:
    """Sums over the positions of each text, (texts,)."""
    return values.new_zeros(len(reading.weights)).index_add(0, reading.texts, values)


def weighted_mean(values: Tensor, reading: Reading) -> Tensor:
    """The mean over positions, each with the weight of its text."""
    return (values * reading.weights[reading.texts]).mean()
