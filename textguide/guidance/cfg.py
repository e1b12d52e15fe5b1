"""Classifier-free guidance for language models (Sanchez et al., arXiv 2306.17806)."""

from __future__ import annotations

from dataclasses import dataclass

from .base import ROW, About
from .scaled import Contrast
from .validation import finite


@dataclass(frozen=True)
class CFG(Contrast):
    """Move the next-token distribution away from what the model says without the prompt.

    ``log P̂(w) = log P(w|u) + γ (log P(w|c) − log P(w|u))`` (Eq. 7), with ``c`` the prompt and ``u`` a context to move
    away from: the last token of the prompt where nothing else is given (section 3.1), else a negative prompt (Eq. 5).
    Costs one extra row in the same forward pass per row that is decoded.

    A prompt of one token is its own last token: both branches read the same, and guidance does nothing for that row
    (a warning names it). Give a negative prompt, or let the prompt begin with the tokenizer's begin token (BOS).

    Args:
        scale: γ. 1 changes nothing, above 1 follows the prompt more closely, 0 samples from the other branch.
            The paper uses 1.5 on benchmarks, 1.1 to 1.5 for code, 3 with negative system prompts.
        negative_prompt: the context to move away from: a text, token ids or chat messages, for all rows; or a list
            with one of these per row. A negative prompt that repeats the prompt with one change works better than a
            bare word. None: the last token of the prompt (for an encoder-decoder an empty source).
        negative_system: keep the user's chat and swap its system prompt for this one; excludes ``negative_prompt``.
        schedule: how γ moves with progress; a name of ``textguide.guidance.schedules``.
        renormalize: return normalised log-probabilities. False gives the published evaluation's sums of
            ``γ·lc + (1 − γ)·lu``; the sampled distribution is the same either way.
        skip_threshold: None runs the extra branch at every step. Otherwise it is left out for some steps once the
            guided distribution of every row has stood within this many nats of the unguided one, KL(guided‖unguided).
            The skipped steps are re-read later, and the largest KL among them is reported.
        min_scale: lower bound on γ(s).
        max_scale: upper bound on γ(s).
        start: progress, in [0, 1], before which guidance is off.
        stop: progress after which guidance is off.

    Raises:
        ValueError: a field has a value that cannot work; the message names it.
    """

    name = "cfg"
    about = About("2306.17806", "lu + γ (lc − lu)", ROW, "γ = 1", "answers that should follow the prompt more closely")


def scale_from_weight(weight: float) -> float:
    """γ for a paper whose formula is ``lu + (w + 1)(lc − lu)`` and off at 0: LLaDA's ``cfg_scale``, A-CFG's ``w``,
    the α of context-aware decoding, the k of token perturbation guidance."""
    return finite("weight", weight) + 1.0


def weight_from_scale(scale: float) -> float:
    """The inverse of :func:`scale_from_weight`."""
    return finite("scale", scale) - 1.0
