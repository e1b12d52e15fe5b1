"""Entropy-aware branching (EAGer, arXiv 2510.11170)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...support.checks import finite_number, whole_number
from ..base import About, Sampling
from ..needs import Need


@dataclass(frozen=True)
class EAGer(Sampling):
    """Spend further samples where the model hesitates: a text forks where its next-token distribution has much entropy.

    Each prompt starts as one text. Where the entropy of the guided distribution, before processors and warpers, exceeds
    ``entropy_threshold`` nats, a second text goes on from the same tokens with another token: a draw from the
    distribution without the first one's (the next most likely one in greedy decoding). Both may fork again, until
    ``max_branches`` texts of the prompt exist. What they share is read once.

    :func:`textguide.eager` gives the texts of each prompt and who forked from whom; as a guidance, rows of the output
    are prompts times ``max_branches``, of which those that were not needed are empty. Helps where several answers are
    compared or voted on, at a fraction of the tokens of as many independent samples. Costs one row in the same pass a
    text.

    Experimental: which token the new branch takes, and that entropy is measured before the temperature, are the
    clearest readings of the method, not checked against the authors' code; their second stage, which gives unspent
    branches to the prompts that used all of theirs, is left out.

    Args:
        entropy_threshold: nats above which a text forks. The paper uses 2.0 to 2.4, at temperature 0.6.
        max_branches: most texts a prompt, the first one included. The paper uses up to 32.

    Raises:
        ValueError: a field has a value that cannot work; the message names it.
    """

    entropy_threshold: float = 2.2
    max_branches: int = 8

    name: ClassVar[str] = "eager"
    about: ClassVar[About] = About(
        "2510.11170", "lc; a second text with another token where its entropy exceeds a threshold",
        "one row in the same pass for every text", "one branch", "several answers for less than as many samples",
        experimental=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        self._put(entropy_threshold=finite_number("entropy_threshold", self.entropy_threshold))
        if self.entropy_threshold < 0:
            raise ValueError(f"entropy_threshold={self.entropy_threshold} must be 0 or more nats")
        whole_number("max_branches", self.max_branches, 1)

    rows_field: ClassVar[str] = "max_branches"

    @property
    def particles(self) -> int:  # type: ignore[override]
        """Rows per prompt."""
        return self.max_branches

    @property
    def forks(self) -> bool:
        """Always."""
        return True

    @property
    def needs(self) -> frozenset[Need]:
        """Rows for texts that fork."""
        return frozenset({Need.FORK})

    @property
    def is_neutral(self) -> bool:
        """No text may fork."""
        return self.max_branches == 1
