"""CAIF: a classifier weighs the candidates for the next token (Sitdikov et al., arXiv 2205.07276)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..support.checks import is_whole_number
from .base import About
from .text_reweighting import TextReweighting


@dataclass(frozen=True)
class CAIF(TextReweighting):
    """Reweight the next token by the probability that a classifier gives to the resulting text.

    ``p(xᵢ|x<ᵢ, c) ∝ p(xᵢ|x<ᵢ) · p(c|x≤ᵢ)^α`` (section 3), with ``p(c|x≤ᵢ)`` from any text classifier. The language
    model needs no training. Costs one classifier call on ``top_k`` texts per row and step, and no pass of the model.

    **What truncation drops.** Only the ``top_k`` most likely tokens are scored. All others get probability 0 at the
    steps at which CAIF acts, so the distribution is the formula restricted to the candidates, as published (the paper
    then samples from the best 20 of the reweighted candidates; pass ``top_k=20`` as a sampling option for that).
    ``top_k=None`` scores the whole vocabulary and is exact. It is meant for small vocabularies.

    Args:
        classifier: the source of ``log p(c|text)``: an object of ``textguide.classifiers``, or its name, such as
            ``"sentiment"`` or a folder that ``textguide classifier train`` wrote.
        target: the class to steer towards (or away from), by name or number.
        weight: α. 0 changes nothing, above 0 steers towards the target, below 0 away from it. The authors'
            demonstration goes up to ±5 for sigmoid heads and up to ±30 for softmax heads.
        top_k: number of candidates. None: the whole vocabulary.
        entropy_threshold: rows whose next-token entropy is below this many nats are left unchanged and are not scored.
            0 scores every row; the authors' demonstration uses 2.
        every: only act at every n-th step, starting with the first.
        include_prompt: whether the classifier also reads the prompt, or only the generated text.
        schedule: how the weight changes with progress; a name from ``textguide.guidance.schedules``.
        start: progress, in [0, 1], before which the weight is 0.
        stop: progress after which the weight is 0.

    Several CAIF guidances in one run see the same distribution and candidates, and their weights add up.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    classifier: Any
    target: str | int
    weight: float = 1.0
    top_k: int | None = 100

    name = "caif"
    scorer_kind = "classifier"
    about = About(
        paper="2205.07276",
        rule="lc + α log p(class | text), on the top candidates",
        passes="one classifier call on `top_k` texts",
        neutral="α = 0",
        helps="a style or a topic that a classifier recognises",
        example="caif:classifier=sentiment,target=positive",
    )

    def __post_init__(self) -> None:
        if not isinstance(self.classifier, str) and not hasattr(self.classifier, "log_prob"):
            raise ValueError(
                f"classifier={self.classifier!r} does not have log_prob; wrap a function in "
                "textguide.classifiers.FunctionClassifier, or name a classifier such as 'sentiment'"
            )
        if not isinstance(self.target, str) and not is_whole_number(self.target):
            raise ValueError(f"target={self.target!r} must be the name or the number of a class")
        super().__post_init__()

    @property
    def scorer(self) -> Any:
        """The classifier."""
        return self.classifier

    def column(self, scorer: Any) -> int:
        """The index of the target class."""
        return int(scorer.index(self.target))
