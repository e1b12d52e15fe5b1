"""ARGS: a reward joins the scores of the candidates for the next token (Khanov et al., arXiv 2402.01694)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .base import About
from .text_reweighting import TextReweighting


@dataclass(frozen=True)
class Reward(TextReweighting):
    """Weigh the next token by a reward for the text that it makes.

    ``score(w) = log p(w|x) + weight · r(x, w)`` on the ``top_k`` most likely tokens (section 2.1; the authors' code
    adds the reward to the logits, which differ from log-probabilities by a constant, so that neither way of choosing
    sees the difference). With ``do_sample=False`` the best score is taken: ARGS-greedy. With sampling, tokens are drawn
    from the softmax of the scores, which ``temperature=τ`` divides: ARGS-stochastic. The other tokens get probability 0
    at the steps where it acts; ``top_k=None`` scores the whole vocabulary. Costs one call of the reward on ``top_k``
    texts a row and step, and no pass of the language model.

    A reward that was trained on whole answers judges texts here that are not finished; the paper leaves it at that. One
    that judges every next token is :class:`textguide.guidance.GenARM`.

    Args:
        model: what gives the reward: a function from a list of texts to a list of numbers; an object of
            ``textguide.classifiers`` such as ``RewardModel(model, tokenizer)``, a sequence-classification model with
            one output; or a name: the folder of such a model, ``hf:NAME``, or ``python:MODULE:NAME``.
        weight: w; 0 changes nothing, below 0 steers away from the reward. The authors' examples use 1 and 1.5.
        top_k: number of candidates, 10 in the authors' examples; None: the whole vocabulary.
        entropy_threshold: rows whose next-token entropy is below this many nats are left as they are, and not scored.
        every: act at every n-th step only, from the first on.
        include_prompt: whether the reward reads the prompt too, or only what was written behind it.
        schedule: how the weight moves with progress; a name of ``textguide.guidance.schedules``.
        start: progress, in [0, 1], before which the weight is 0.
        stop: progress after which the weight is 0.

    It reads text, of which special tokens are no part: an end token stands for the finished text.

    Raises:
        ValueError: a field has a value that cannot work; the message names it.
    """

    model: Any
    weight: float = 1.0
    top_k: int | None = 10

    name = "reward"
    asks = "reward"
    about = About(
        "2402.01694", "lc + w r(text), on the top candidates", "one call of the reward on `top_k` texts", "w = 0",
        "answers that a reward model prefers", "reward:model=FOLDER",
    )  # fmt: skip

    def __post_init__(self) -> None:
        is_named = isinstance(self.model, str) and bool(self.model.strip())
        is_scorer = hasattr(self.model, "reward") or (callable(self.model) and not hasattr(self.model, "config"))
        if not is_named and not is_scorer:
            raise ValueError(
                f"model={self.model!r} gives no reward; pass a function from texts to numbers, wrap a transformers "
                "model in textguide.classifiers.RewardModel(model, tokenizer), or name a folder"
            )
        super().__post_init__()

    @property
    def scorer(self) -> Any:
        """The reward."""
        return self.model

    def column(self, scorer: Any) -> int:
        """A reward is one number."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a function by the name by which it is found again, if it stands in a module."""
        values = super().to_dict()
        if not isinstance(self.model, str) and not hasattr(self.model, "to_dict"):
            place = (
                getattr(self.model, "__module__", ""),
                getattr(self.model, "__qualname__", type(self.model).__name__),
            )
            values["model"] = "python:" + ":".join(place)
        return values
