"""CAIF: a classifier weighs the candidates for the next token (Sitdikov et al., arXiv 2205.07276)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .base import About
from .text_reweighting import TextReweighting


@dataclass(frozen=True)
class CAIF(TextReweighting):
    """Weigh the next token by what a classifier says of the text that it makes.

    ``p(xᵢ|x<ᵢ, c) ∝ p(xᵢ|x<ᵢ) · p(c|x≤ᵢ)^α`` (section 3), with ``p(c|x≤ᵢ)`` from any classifier of text. No training of
    the language model; costs one classifier call on ``top_k`` texts a row and step, and no pass of the model.

    **What the truncated form drops.** The ``top_k`` most likely tokens are scored, and all others get probability 0 at
    the steps where CAIF acts: the distribution is that of the formula on the candidates alone, as published (where the
    best 20 of the weighted candidates are sampled; pass ``top_k=20`` as a sampling option for that). ``top_k=None``
    scores the whole vocabulary and is exact; it is meant for small vocabularies.

    Args:
        classifier: what gives ``log p(c|text)``: an object of ``textguide.classifiers``, or its name as text, such as
            ``"sentiment"`` or a folder that ``textguide classifier train`` wrote.
        target: the class to steer towards (or away from), by name or number.
        weight: α. 0 changes nothing, above 0 steers towards the target, below 0 away from it. Up to ±5 for sigmoid
            heads and up to ±30 for softmax heads in the authors' demonstration.
        top_k: number of candidates; None: the whole vocabulary.
        entropy_threshold: rows whose next-token entropy is below this many nats are left as they are, and not scored.
            0 scores every row; the authors' demonstration uses 2.
        every: act at every n-th step only, from the first on.
        include_prompt: whether the classifier reads the prompt too, or only what was written behind it.
        schedule: how the weight moves with progress; a name of ``textguide.guidance.schedules``.
        start: progress, in [0, 1], before which the weight is 0.
        stop: progress after which the weight is 0.

    Several of them in one run see the same distribution and candidates, and their weights add up.

    Raises:
        ValueError: a field has a value that cannot work; the message names it.
    """

    classifier: Any
    target: str | int
    weight: float = 1.0
    top_k: int | None = 100

    name = "caif"
    asks = "classifier"
    about = About(
        "2205.07276", "lc + α log p(class | text), on the top candidates",
        "one classifier call on `top_k` texts", "α = 0", "a style or a topic that a classifier knows",
        "caif:classifier=sentiment,target=positive",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not isinstance(self.classifier, str) and not hasattr(self.classifier, "log_prob"):
            raise ValueError(
                f"classifier={self.classifier!r} gives no log_prob; wrap a function in "
                "textguide.classifiers.FunctionClassifier, or name a classifier such as 'sentiment'"
            )
        if isinstance(self.target, bool) or not isinstance(self.target, (str, int)):
            raise ValueError(f"target={self.target!r} must be the name or the number of a class")
        super().__post_init__()

    @property
    def scorer(self) -> Any:
        """The classifier."""
        return self.classifier

    def column(self, scorer: Any) -> int:
        """The target's."""
        return int(scorer.index(self.target))
