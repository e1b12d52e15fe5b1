"""Classifier-free guidance for language models (Sanchez et al., arXiv 2306.17806)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from ..support.checks import finite_number
from .base import ROW, About, Branch
from .scaled import Contrast
from .views import Adapted, View


@dataclass(frozen=True)
class CFG(Contrast):
    """Move the next-token distribution away from the model's prediction without the prompt.

    ``log P̂(w) = log P(w|u) + γ (log P(w|c) − log P(w|u))`` (Eq. 7), where ``c`` is the prompt and ``u`` is the
    context to move away from: a negative prompt if there is one (Eq. 5), otherwise the last token of the prompt
    (section 3.1). Costs one extra row in the same forward pass for each decoded row.

    A prompt of one token is its own last token: both branches read the same, and guidance has no effect on that row (a
    warning names it). Pass a negative prompt, or start the prompt with the tokenizer's begin token (BOS).

    Args:
        scale: γ. 1 changes nothing, above 1 follows the prompt more closely, 0 samples from the other branch. The
            paper uses 1.5 on benchmarks, 1.1 to 1.5 for code, and 3 with negative system prompts.
        negative_prompt: the context to move away from: a text, token ids or chat messages, for all rows; or a list
            with one of these per row. A negative prompt that repeats the prompt with one change works better than a
            bare word. None: the last token of the prompt (for an encoder-decoder, an empty source).
        negative_system: keep the user's chat, but replace its system prompt with this one; excludes
            ``negative_prompt``.
        schedule: how γ changes with progress; a name from ``textguide.guidance.schedules``.
        renormalize: return normalised log-probabilities. False returns the sums ``γ·lc + (1 − γ)·lu`` of the published
            evaluation, which penalties then act on, as they do with transformers' ``guidance_scale``; without a
            penalty, the sampled distribution is the same either way.
        skip_threshold: deprecated and ignored; every step runs the extra branch.
        min_scale: lower bound on γ(s).
        max_scale: upper bound on γ(s).
        start: progress, in [0, 1], before which guidance is off.
        stop: progress after which guidance is off.
        distilled: folder of an adapter that ``textguide distill`` trained to follow this guidance. The conditional
            pass runs with the adapter and there is no other pass, so a token costs the same as without guidance. γ
            sets the strength of the adapter and must stay constant within a text.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    distilled: str | None = field(default=None, kw_only=True)

    name = "cfg"
    about = About("2306.17806", "lu + γ (lc − lu)", ROW, "γ = 1", "answers that should follow the prompt more closely")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distilled is None:
            return
        if not isinstance(self.distilled, (str, os.PathLike)) or not os.fspath(self.distilled):
            raise ValueError(f"distilled={self.distilled!r} must be the folder of an adapter, or None")
        if self.is_timed or self.skip_threshold is not None:
            raise ValueError(
                "distilled= has one strength for a whole text and runs no second pass; leave out schedule=, start=, "
                "stop= and skip_threshold=, or distilled="
            )
        self._put(distilled=os.fspath(self.distilled))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = super().to_dict()
        if self.distilled is None:  # the field was added later; fingerprints of earlier files stay valid
            del values["distilled"]
        return values

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The unconditional branch; none if an adapter replaces it."""
        return super().branches if self.distilled is None else ()

    @property
    def view(self) -> View | None:
        """The model with the adapter, if there is one."""
        return None if self.distilled is None else Adapted(self.distilled, float(self._bounded(self.scale)))


def scale_from_weight(weight: float) -> float:
    """γ for a paper whose formula is ``lu + (w + 1)(lc − lu)`` and off at 0: LLaDA's ``cfg_scale``, A-CFG's ``w``,
    the α of context-aware decoding, the k of token perturbation guidance."""
    return finite_number("weight", weight) + 1.0


def weight_from_scale(scale: float) -> float:
    """The inverse of :func:`scale_from_weight`."""
    return finite_number("scale", scale) - 1.0
