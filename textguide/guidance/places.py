"""The places in which guidance runs, and what each of them lacks: together with the methods' needs, a support matrix.

A guidance lists its requirements in :attr:`~textguide.guidance.base.Guidance.needs`, most of which follow from its
branches. A :class:`Place` lists the needs that it cannot meet, each with the reason. If a method has one of these
needs, its cell of the matrix is empty, and the error message of that place gives the same reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .base import Guidance, parts_of
from .needs import Need


@dataclass(frozen=True)
class Place:
    """A way to run guidance.

    Args:
        name: its column in the matrix.
        title: its description, for use within a sentence.
        call: the function, class or command that users call.
        lacks: needs that it cannot meet, each with the reason: a clause without a capital letter and a full stop.
    """

    name: str
    title: str
    call: str
    lacks: Mapping[Need, str]

    def reason(self, guidance: Guidance) -> str | None:
        """The reason why ``guidance`` cannot run here, as a clause; None if it can."""
        return next((self.lacks[need] for need in Need if need in guidance.needs and need in self.lacks), None)

    def refusal(self, guidance: Guidance) -> str | None:
        """The error message if ``guidance`` cannot run here: the reason, and places that can. None if it can run."""
        need = next((need for need in Need if need in guidance.needs and need in self.lacks), None)
        if need is None:
            return None
        others = [place.call for place in PLACES if place.name != "lm_eval" and place.reason(guidance) is None]
        use = f"; use {' or '.join(others[:2])}" if others else ""
        return f"guidance {guidance.name!r} {need.value}, and {self.lacks[need]}{use}"


_NO_CANVAS = "a text that is generated from left to right has no masks to fill"
_NO_IMAGE = "only models that see images have one"

PLACES = (
    Place(
        "generate", "textguide.generate and guided_decoding", "textguide.generate",
        {Need.CANVAS: _NO_CANVAS, Need.ESTIMATE: _NO_CANVAS, Need.IMAGE: _NO_IMAGE},
    ),
    Place(
        "dropin", "a logits processor of model.generate", "GuidanceLogitsProcessor",
        {
            Need.WEIGHTS: "a logits processor only receives scores and cannot move rows",
            Need.FORK: "a logits processor only receives scores and cannot add rows",
            Need.CLASS_LOG_PROBS: "this logits processor reads no texts",
            Need.CANVAS: _NO_CANVAS,
            Need.ESTIMATE: _NO_CANVAS,
            Need.IMAGE: "a logits processor does not receive images",
        },
    ),
    Place(
        "score", "textguide.score", "textguide.score",
        {
            Need.CONSTRAINT: "the probability of a given text under a constraint depends on every other text that "
            "satisfies it, which sampling estimates and scoring does not",
            Need.WEIGHTS: "the probability of a given text depends on the weights of all others, which sampling "
            "estimates and scoring does not",
            Need.FORK: "a given text does not fork",
            Need.ROWS: "each given text is scored on its own",
            Need.CANVAS: _NO_CANVAS,
            Need.ESTIMATE: _NO_CANVAS,
            Need.IMAGE: _NO_IMAGE,
        },
    ),
    Place(
        "lm_eval", "lm-eval's model", "lm_eval with model='textguide'",
        {
            Need.ROWS: "the questions that lm-eval puts into a batch have nothing to do with each other",
            Need.IMAGE: "lm-eval's text tasks have no images",
        },
    ),
    Place(
        "vllm", "vLLM", "textguide serve",
        {
            Need.PART: "vLLM runs all layers of its model without changes, with one cache for each",
            Need.REWARD: "the engine only calls the classifier that it was started with",
            Need.VALUE: "the engine only calls the classifier that it was started with",
            Need.FORK: "vLLM generates each request on its own and cannot fork it",
            Need.CLASS_LOG_PROBS: "the engine only calls its classifier on candidates",
            Need.LIKELIHOODS: "a preempted request is read again without the probabilities of its text",
            Need.ROWS: "vLLM decides which requests share a step",
            Need.CANVAS: _NO_CANVAS,
            Need.ESTIMATE: _NO_CANVAS,
            Need.IMAGE: "the branch requests of a guided request only read text",
        },
    ),
    Place(
        "diffusion", "masked diffusion", "textguide.diffusion.generate",
        {
            Need.PART: "a denoiser is any module from tokens to logits, and its layers are not known",
            Need.VALUE: "positions are filled in any order, so a canvas is not a prefix",
            Need.CONSTRAINT: "a constraint reads texts from left to right, and positions are filled in any order",
            Need.WEIGHTS: "rows of a canvas keep their positions",
            Need.FORK: "rows of a canvas keep their positions",
            Need.CLASS_LOG_PROBS: "positions are filled in any order, and a classifier reads whole texts",
            Need.LIKELIHOODS: "positions are filled in any order, so there is no text so far",
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
    """The place named ``name``."""
    return next(place for place in PLACES if place.name == name)


def check_place(guidance: Guidance | None, name: str) -> None:
    """Refuse a guidance that the place named ``name`` cannot run.

    Raises:
        ValueError: it cannot run there; the message contains its need, the reason, and other places that can run it.
    """
    for part in parts_of(guidance):
        refusal = None if part.is_neutral else place(name).refusal(part)
        if refusal is not None:
            raise ValueError(refusal)
