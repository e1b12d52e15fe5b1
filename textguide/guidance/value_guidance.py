"""Controlled decoding: reweighting by the value of prefixes (arXiv 2310.17022; FUDGE, arXiv 2104.05218)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from .base import About
from .needs import Need
from .text_reweighting import TextReweighting


@dataclass(frozen=True)
class ValueGuidance(TextReweighting):
    """Reweight the next token by the value of the resulting prefix.

    ``p'(w|x) ∝ p(w|x) · exp(weight · V(x, w))``, where ``V`` is the expected reward of the texts that the model itself
    would generate from a prefix (Mudgal et al., arXiv 2310.17022: the solution of KL-regularised reinforcement
    learning, with λ as the weight). If the reward is the probability of an attribute, ``V`` is the logarithm of the
    probability that the finished text has it, and a weight of 1 is Bayes' rule (FUDGE, Yang and Klein, arXiv
    2104.05218). A classifier or reward model of whole texts, as in :class:`textguide.CAIF` and
    :class:`textguide.Reward`, judges a prefix as if it were a finished text; a value head looks ahead.

    ``V`` is a linear head on the language model's own hidden states, trained on its own rollouts: every prefix of a
    generated text is an example, and its label is the score of the finished text (CD-FUDGE). ``textguide value train``
    and :func:`textguide.value.train` train one. Candidates share the cache of the prefix, so a step costs one pass
    over one token per candidate.

    The papers train heads that are networks, or fine-tune a model; only a linear head is available here. Their
    blockwise best-of-K, which draws K blocks of tokens and keeps the one with the largest value, is left out.

    Args:
        value: a ``ValueHead`` of ``textguide.classifiers``, or the folder of one.
        weight: λ; 0 changes nothing, below 0 steers away.
        top_k: number of candidates. None: the whole vocabulary. The other tokens get probability 0 at the steps at
            which it acts.
        entropy_threshold: rows whose next-token entropy is below this many nats are left unchanged and are not scored.
        every: only act at every n-th step, starting with the first.
        include_prompt: whether the head also reads the prompt, as it did in training.
        schedule: how the weight changes with progress; a name from ``textguide.guidance.schedules``.
        start: progress, in [0, 1], before which the weight is 0.
        stop: progress after which the weight is 0.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    value: Any
    weight: float = 1.0
    top_k: int | None = 100

    name = "value"
    scorer_kind = "value"
    about = About(
        paper="2310.17022",
        rule="lc + λ V(text), V the expected reward of its continuations, on the top candidates",
        passes="one pass over `top_k` tokens",
        neutral="λ = 0",
        helps="rewards and attributes of whole texts",
        example="value:value=FOLDER",
        mechanism="a linear head instead of a network, and without blockwise best-of-K",
    )

    def __post_init__(self) -> None:
        if isinstance(self.value, os.PathLike):
            self._put(value=os.fspath(self.value))
        is_named = isinstance(self.value, str) and bool(self.value.strip())
        if not is_named and not hasattr(self.value, "start"):
            raise ValueError(
                f"value={self.value!r} must be a ValueHead of textguide.classifiers, or a folder that 'textguide value "
                "train' wrote"
            )
        super().__post_init__()

    @property
    def needs(self) -> frozenset[Need]:
        """The candidates, and the value of prefixes of texts."""
        return frozenset({Need.CANDIDATES, Need.VALUE})

    @property
    def scorer(self) -> Any:
        """The value head."""
        return self.value

    def column(self, scorer: Any) -> int:
        """A value is one number."""
        return 0
