"""Entropy-aware branching (EAGer, arXiv 2510.11170)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...support.checks import number_from, whole_number
from ..base import About, Sampling
from ..needs import Need


@dataclass(frozen=True)
class EAGer(Sampling):
    """Spend extra samples when the model is uncertain: a text forks if its next-token distribution has a high entropy.

    Each prompt starts as one text. If the entropy of the guided distribution, before processors and warpers, exceeds
    ``entropy_threshold`` nats, a second text continues from the same tokens with a different token: a draw from the
    distribution without the first text's token (in greedy decoding, the next most likely one). Both may fork again,
    until the prompt has ``max_branches`` texts. Shared tokens are read once.

    :func:`textguide.eager` returns the texts of each prompt and which text forked from which. Used as a guidance, the
    output has prompts × ``max_branches`` rows, and unused rows are empty. Useful when several answers are compared or
    voted on, with a fraction of the tokens of as many independent samples. Costs one row in the same pass per text.

    Experimental: which token the new branch gets, and that the entropy is measured before the temperature, are the
    most plausible readings of the method. They were not checked against the authors' code. The authors' second stage,
    which gives unused branches to the prompts that used all of theirs, is ``budget=`` of :func:`textguide.eager`.

    Args:
        entropy_threshold: entropy in nats above which a text forks. The paper uses 2.0 to 2.4, at temperature 0.6.
        max_branches: maximum number of texts per prompt, including the first one. The paper uses up to 32.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    entropy_threshold: float = 2.2
    max_branches: int = 8

    name: ClassVar[str] = "eager"
    about: ClassVar[About] = About(
        paper="2510.11170",
        rule="lc; a text forks, with another token, if its entropy exceeds a threshold",
        passes="one row in the same pass for every text",
        neutral="one branch",
        helps="several answers at a lower cost than independent samples",
        experimental=True,
        mechanism="the second stage is budget= of textguide.eager, without the paper's variant with labels",
    )

    def __post_init__(self) -> None:
        self._put(entropy_threshold=number_from("entropy_threshold", self.entropy_threshold, 0, "in nats"))
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
        """Whether no text may fork."""
        return self.max_branches == 1
