"""The places where guidance acts, what each lacks and why: with what methods need, the matrix of methods and places.

A guidance says by :attr:`~textguide.guidance.base.Guidance.needs` what has to be there, most of it read off its
branches; a :class:`Place` says what it lacks, with the reason. A cell of the matrix is empty where the two meet, and
the same sentence refuses the guidance there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .base import Guidance, parts_of
from .needs import Need


@dataclass(frozen=True)
class Place:
    """Somewhere that guidance acts.

    Args:
        name: its column.
        title: what it is, as a sentence names it.
        call: how a user gets there.
        lacks: needs that it cannot meet, each with the reason, a clause without a capital or a full stop.
    """

    name: str
    title: str
    call: str
    lacks: Mapping[Need, str]

    def reason(self, guidance: Guidance) -> str | None:
        """Why ``guidance`` cannot run here, as a clause; None where it can."""
        return next((self.lacks[need] for need in Need if need in guidance.needs and need in self.lacks), None)

    def refusal(self, guidance: Guidance) -> str | None:
        """What a user who tried is told: the reason, and the places that can; None where it can run."""
        need = next((need for need in Need if need in guidance.needs and need in self.lacks), None)
        if need is None:
            return None
        others = [place.call for place in PLACES if place.name != "lm_eval" and place.reason(guidance) is None]
        use = f"; use {' or '.join(others[:2])}" if others else ""
        return f"guidance {guidance.name!r} {need.value}, and {self.lacks[need]}{use}"


_NO_CANVAS = "a text that is written from left to right has no masks to fill"
_NO_IMAGE = "only a model that sees images has one"

PLACES = (
    Place(
        "generate", "textguide.generate and guided_decoding", "textguide.generate",
        {Need.CANVAS: _NO_CANVAS, Need.ESTIMATE: _NO_CANVAS, Need.IMAGE: _NO_IMAGE},
    ),
    Place(
        "dropin", "a logits processor of model.generate", "GuidanceLogitsProcessor",
        {
            Need.WEIGHTS: "a logits processor is handed scores and cannot move rows",
            Need.FORK: "a logits processor is handed scores and cannot add rows",
            Need.CLASS_LOG_PROBS: "this logits processor reads no texts",
            Need.CANVAS: _NO_CANVAS,
            Need.ESTIMATE: _NO_CANVAS,
            Need.IMAGE: "a logits processor is handed no image",
        },
    ),
    Place(
        "score", "textguide.score", "textguide.score",
        {
            Need.CONSTRAINT: "the probability of a given text under a constraint depends on every other text that "
            "satisfies it, which drawing estimates and reading does not",
            Need.WEIGHTS: "the probability of a given text depends on the weights of all others, which drawing "
            "estimates and reading does not",
            Need.FORK: "a text that is given forks nowhere",
            Need.ROWS: "each given text is scored by itself",
            Need.CANVAS: _NO_CANVAS,
            Need.ESTIMATE: _NO_CANVAS,
            Need.IMAGE: _NO_IMAGE,
        },
    ),
    Place(
        "lm_eval", "lm-eval's model", "lm_eval with model='textguide'",
        {
            Need.ROWS: "the questions that lm-eval puts into a batch have nothing to do with each other",
            Need.IMAGE: "lm-eval's text tasks have none",
        },
    ),
    Place(
        "vllm", "vLLM", "textguide serve",
        {
            Need.PART: "vLLM runs the layers of its model whole and as they are, with one cache for each",
            Need.REWARD: "the engine asks the one classifier that it was started with",
            Need.VALUE: "the engine asks the one classifier that it was started with",
            Need.FORK: "vLLM writes each request by itself and forks none",
            Need.CLASS_LOG_PROBS: "the engine asks its classifier about candidates alone",
            Need.LIKELIHOODS: "a request that was preempted is read again without what each model gave to its text",
            Need.ROWS: "vLLM decides by itself which requests share a step",
            Need.CANVAS: _NO_CANVAS,
            Need.ESTIMATE: _NO_CANVAS,
            Need.IMAGE: "the branch requests of a guided request read text alone",
        },
    ),
    Place(
        "diffusion", "masked diffusion", "textguide.diffusion.generate",
        {
            Need.PART: "a denoiser is any module from tokens to logits, whose layers are not known",
            Need.VALUE: "positions are filled in any order, so that a canvas is no beginning",
            Need.CONSTRAINT: "a constraint reads texts from left to right, and positions are filled in any order",
            Need.WEIGHTS: "rows of a canvas stay where they are",
            Need.FORK: "rows of a canvas stay where they are",
            Need.CLASS_LOG_PROBS: "positions are filled in any order, and a classifier reads whole texts",
            Need.LIKELIHOODS: "positions are filled in any order, so that there is no text so far",
            Need.ROWS: "rows of a canvas are filled at their own pace",
            Need.IMAGE: _NO_IMAGE,
        },
    ),
    Place(
        "caption", "captioning", "textguide.caption",
        {
            Need.SYSTEM: "the chats of models that see images are made by their processors",
            Need.CANVAS: _NO_CANVAS,
            Need.ESTIMATE: _NO_CANVAS,
        },
    ),
)  # fmt: skip
"""All places, in the order of the columns."""


def place(name: str) -> Place:
    """The place called ``name``."""
    return next(one for one in PLACES if one.name == name)


def check_place(guidance: Guidance | None, name: str) -> None:
    """Refuse a guidance that the place called ``name`` cannot run.

    Raises:
        ValueError: the sentence says what it needs, why that is not there, and the place that can.
    """
    for part in parts_of(guidance):
        refusal = None if part.is_neutral else place(name).refusal(part)
        if refusal is not None:
            raise ValueError(refusal)
