"""ARGS: a reward is added to the scores of the candidates for the next token (Khanov et al., arXiv 2402.01694)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .base import About
from .text_reweighting import TextReweighting


@dataclass(frozen=True)
class Reward(TextReweighting):
    """Reweight the next token by a reward for the resulting text.

    ``score(w) = log p(w|x) + weight · r(x, w)`` on the ``top_k`` most likely tokens (section 2.1; the authors' code
    adds the reward to the logits, which differ from log-probabilities by a constant, so both ways choose the same
    tokens). With ``do_sample=False``, the token with the best score is chosen: ARGS-greedy. With sampling, tokens are
    drawn from the softmax of the scores divided by ``temperature=τ``: ARGS-stochastic. The other tokens get
    probability 0 at the steps at which it acts; ``top_k=None`` scores the whole vocabulary. Costs one call of the
    reward on ``top_k`` texts per row and step, and no pass of the language model.

    A reward model that was trained on whole answers judges unfinished texts here; the paper accepts that. A reward for
    every next token is :class:`textguide.guidance.GenARM`.

    Args:
        model: the source of the reward: a function from a list of texts to a list of numbers; an object of
            ``textguide.classifiers`` such as ``RewardModel(model, tokenizer)``, a sequence-classification model with
            one output; or a name: the folder of such a model, ``hf:NAME``, or ``python:MODULE:NAME``.
        weight: w; 0 changes nothing, below 0 steers away from the reward. The authors' examples use 1 and 1.5.
        top_k: number of candidates, 10 in the authors' examples. None: the whole vocabulary.
        entropy_threshold: rows whose next-token entropy is below this many nats are left unchanged and are not scored.
        every: only act at every n-th step, starting with the first.
        include_prompt: whether the reward model also reads the prompt, or only the generated text.
        schedule: how the weight changes with progress; a name from ``textguide.guidance.schedules``.
        start: progress, in [0, 1], before which the weight is 0.
        stop: progress after which the weight is 0.

    The reward model reads text without special tokens: an end token is scored as the finished text.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    model: Any
    weight: float = 1.0
    top_k: int | None = 10

    name = "reward"
    scorer_kind = "reward"
    about = About(
        paper="2402.01694",
        rule="lc + w r(text), on the top candidates",
        passes="one call of the reward on `top_k` texts",
        neutral="w = 0",
        helps="answers that a reward model prefers",
        example="reward:model=FOLDER",
    )

    def __post_init__(self) -> None:
        is_named = isinstance(self.model, str) and bool(self.model.strip())
        is_scorer = hasattr(self.model, "reward") or (callable(self.model) and not hasattr(self.model, "config"))
        if not is_named and not is_scorer:
            raise ValueError(
                f"model={self.model!r} is not a reward; pass a function from texts to numbers, wrap a transformers "
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
        """Plain JSON values. A function is written as ``python:MODULE:NAME``, from which it can be imported again."""
        values = super().to_dict()
        if not isinstance(self.model, str) and not hasattr(self.model, "to_dict"):
            module = getattr(self.model, "__module__", "")
            name = getattr(self.model, "__qualname__", type(self.model).__name__)
            values["model"] = f"python:{module}:{name}"
        return values
