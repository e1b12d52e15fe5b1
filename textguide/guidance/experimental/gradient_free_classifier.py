"""Gradient-free classifier guidance (Shenoy et al., arXiv 2411.15393)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...support.checks import flag, is_whole_number
from .. import algebra
from ..base import ROW, About, Branch, Step
from ..prompts import Prompt, as_prompts
from ..scaled import Scaled


@dataclass(frozen=True)
class GradientFreeClassifier(Scaled):
    """Move away from the class with which a classifier confuses the text, in proportion to the confusion.

    At every step a classifier reads the text so far. The most likely of the other classes is the reference.
    Classifier-free guidance then moves away from the prompt of that class, ``lr + γ (lc − lr)`` with
    ``γ = 1 + (scale − 1) · κ``. ``κ = p(reference) / (p(reference) + p(target))`` is the confusion of the two classes:
    0 if the classifier is sure of the target, a half if it cannot decide, 1 if it is sure of the reference. The user's
    own prompt is the prompt of the target. Costs one row in the same pass for each other class, and one classifier
    call on one text per row and step; no gradient is needed, and no candidate is scored.

    Experimental: the paper determines "a time-adaptive reference class label and corresponding guidance scale" at each
    step of an image's denoising, with a classifier of half-denoised images. Its schedule for the scale is not
    reproduced: that γ grows in proportion to the confusion of two classes, and the definition of that confusion, are
    choices made here. The branches of all classes run at every step, because each has a cache that must follow the
    text; the paper only runs the branch of the reference.

    Args:
        classifier: the source of ``log p(class|text)``: an object of ``textguide.classifiers``, or its name.
        target: the class that the prompt asks for, by name or number.
        prompts: for each other class that may be the reference, the prompt that asks for it: a mapping from the class
            to a prompt as for ``negative_prompt`` of :class:`textguide.CFG`.
        scale: γ if the classifier is sure of the reference. 1 changes nothing.
        system: the prompts are system prompts, which replace the chat's own.
        include_prompt: whether the classifier also reads the prompt, or only the generated text. Exclude the prompt if
            it names the class.

    Raises:
        ValueError: a field has an invalid value; the message names it.
    """

    scale: float = field(default=3.0, kw_only=True)
    classifier: Any = None
    target: str | int = ""
    prompts: Any = ()
    system: bool = field(default=False, kw_only=True)
    include_prompt: bool = field(default=True, kw_only=True)

    name = "gradient-free-classifier"
    reads_class_log_probs = True
    about = About(
        paper="2411.15393",
        rule="lr + γ (lc − lr), r the class that the text is confused with, γ by how much it is",
        passes=f"{ROW} for each other class, and a classifier call on one text",
        neutral="γ = 1",
        helps="texts that should not be mistaken for another class",
        example='{"method": "gradient-free-classifier", "classifier": "sentiment", "target": "positive", '
        '"prompts": {"negative": "A sad text:"}}',
        experimental=True,
        mechanism="the scale is proportional to the confusion of two classes; the paper's schedule is not reproduced",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.classifier, str) and not hasattr(self.classifier, "log_prob"):
            raise ValueError(
                f"classifier={self.classifier!r} does not have log_prob; wrap a function in "
                "textguide.classifiers.FunctionClassifier, or name a classifier such as 'sentiment'"
            )
        if not _is_class(self.target) or self.target == "":
            raise ValueError(f"target={self.target!r} must be the name or the number of a class")
        flag("system", self.system)
        flag("include_prompt", self.include_prompt)
        self._put(prompts=self._checked(self.prompts))

    @property
    def classes(self) -> tuple[str | int, ...]:
        """The class of each branch, the target's first."""
        return (self.target, *(label for label, _ in self.prompts))

    @property
    def branches(self) -> tuple[Branch, ...]:
        """One branch for every other class."""
        if self.system:
            return tuple(Branch(system=prompt) for _, prompt in self.prompts)
        return tuple(Branch(prompt=prompt) for _, prompt in self.prompts)

    @property
    def off_at_one(self) -> bool:
        """γ = 1 changes nothing, whatever the confusion."""
        return True

    def mix(self, logp: Tensor, scale: float | Tensor, step: Step) -> Tensor:
        """Guidance against the branch of the reference on ``logp`` (1 + classes, B, V).

        Raises:
            ValueError: the step does not contain the log-probabilities of the classes.
        """
        if step.class_log_probs is None:
            raise ValueError(
                "step.class_log_probs=None: GradientFreeClassifier needs its classifier's log-probabilities of the text"
            )
        likeliest, which = step.class_log_probs[1:].max(dim=0)
        reference = logp[1:].gather(0, which[None, :, None].expand(1, -1, logp.shape[-1]))[0]
        confusion = torch.sigmoid(likeliest - step.class_log_probs[0])[:, None].to(logp.dtype)
        return algebra.extrapolate(logp[0], reference, 1.0 + (scale - 1.0) * confusion)

    def _checked(self, value: Any) -> tuple[tuple[str | int, Prompt | tuple[Prompt, ...]], ...]:
        pairs = list(value.items()) if isinstance(value, Mapping) else value
        if not isinstance(pairs, (list, tuple)) or not pairs or not all(_is_pair(pair) for pair in pairs):
            raise ValueError(
                f"prompts={value!r} must map each other class to the prompt that asks for it, such as "
                "{'negative': 'A bad review:'}"
            )
        prompts: dict[str | int, Any] = {}
        for label, prompt in pairs:
            if not _is_class(label) or label == self.target or label in prompts:
                raise ValueError(
                    f"prompts names the class {label!r}, which must differ from target and from the others"
                )
            if self.system and not isinstance(prompt, str):
                raise ValueError(
                    f"prompts[{label!r}]={prompt!r} must be a text, since system=True makes it a system prompt"
                )
            prompts[label] = as_prompts(prompt, f"prompts[{label!r}]")
            if prompts[label] is None:
                raise ValueError(f"prompts[{label!r}]=None must be a prompt")
        return tuple(prompts.items())


def _is_class(value: Any) -> bool:
    """Whether ``value`` may name a class: a name or a number."""
    return isinstance(value, str) or is_whole_number(value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2
