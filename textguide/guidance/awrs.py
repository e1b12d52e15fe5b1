"""Adaptive weighted rejection sampling under a constraint (Lipkin et al., arXiv 2504.05410), and its kin."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..support.checks import finite_number, whole_number
from .base import About, TokenConstraint

SAMPLERS = ("awrs", "cars", "asap", "mask")
ESTIMATORS = ("auto", "recursive", "geometric")
LOOKAHEADS = ("auto", "automaton", "hmm", "value")
RESAMPLING = ("stratified", "systematic")


@dataclass(frozen=True)
class AWRS(TokenConstraint):
    """Write texts that satisfy a constraint, and keep the model's own distribution among them.

    Ruling out tokens one step at a time (``sampler="mask"``) samples ``Π p(x_t)/Z_t``, which favours texts whose
    beginnings leave few ways on. AWRS draws the same tokens and gives each text the weight ``Π Z_t`` that corrects for
    it, from few questions to the constraint; ``particles`` texts a prompt are written side by side and resampled by
    their weights. Samples in proportion to ``log_weights`` follow ``p(x | constraint)`` as the number of particles
    grows, and the mean weight is an unbiased estimate of the probability of the constraint.

    Two further samplers learn from what failed: a tree of the prefixes that were written holds, for each, how much of
    the probability behind it can still become a member, and later texts are proposed in proportion to it. What is
    learned serves the rows of a prompt, all batches of a run, and all runs within :class:`textguide.Lessons`.

    * ``cars`` (constrained adaptive rejection sampling, arXiv 2510.01902): a text that runs into a dead end begins
      again with the prompt, up to ``max_tries`` times. Every text that is finished is an independent draw from
      ``p(x | constraint)``, exactly; weights are equal (``log_weights`` 0), nothing is resampled. ``log_evidence`` is
      accepted tries over ``Σ 1/bound``, where a try was accepted with probability ``p(constraint)/bound``: consistent,
      not unbiased. Of a lookahead it takes what this rules out.
    * ``asap`` (adaptive sampling with approximate expected futures, arXiv 2405.21047): every row is written once, and
      the distribution of the rows tends to ``p(x | constraint)`` as texts are learned from. Beyond the paper, a row has
      a weight, ``p`` over the probability with which it was drawn: weighed, rows are as unbiased as those of ``awrs``
      from the first one on, and weights become equal as the tree grows. Several particles are resampled by them.

    The distribution ``p`` is what comes out of guidance, processors and warpers (temperature, top-p…). A text ends with
    an end token; where the limit of tokens comes first, the end token is forced with its weight, so that ``p`` is the
    distribution of the texts that end in time, and a text that cannot end there has weight 0.

    Args:
        constraint: a constraint of ``textguide.constraints``, or the dictionary or text that names one.
            None allows every text.
        particles: texts a prompt, N. Rows of the output are prompts times particles.
        ess_threshold: resample a population whose effective sample size falls below this share of N.
        max_rejects: give a particle up, with weight 0, at this many rejected tokens in one step; None: never.
        critic: ``critic(text) -> log φ(text)``: weighs what was written so far, so that resampling looks ahead. Its
            values telescope: the final texts are weighed by ``φ`` of the whole text, and by nothing else of it.
            −inf gives a particle up.
        sampler: ``awrs``; ``cars`` or ``asap``, see above; ``mask`` rules tokens out before processors and warpers and
            weighs nothing.
        estimator: ``recursive``, ``geometric`` (where one token has 2/3 of the mass, or ``accepts`` is above 2), or
            ``auto``, which takes the one that asks less. A constraint that knows its mask needs neither.
        accepts: accepted draws that the geometric estimator waits for; more of them make weights less noisy.
        resampling: ``stratified`` or ``systematic``.
        after: free text comes first, and the constraint holds behind this: a text such as ``"</think>"``,
            ``"regex:PATTERN"``, or a function from the text so far to whether the form begins behind it. None: the
            constraint holds from the first token on.
        lookahead: what is foreseen of a text: how likely it still ends as a member within the limit of tokens. Tokens
            are drawn, and particles resampled, with that in view, and it leaves no trace in the final weights: these
            stay unbiased, however rough it is. ``automaton``: the fewest tokens that complete a text against those
            left, so that what cannot end in time is never begun; ``auto``: that, where the constraint has an automaton
            or is a JSON schema; None: nothing. The path of a file that ``textguide lookahead train`` made: a hidden
            Markov model of the model's texts, multiplied with that automaton, or a value that was learned for this
            constraint. ``hmm``: the hidden Markov model that comes with textguide, of the bundled model's tokens.
            ``value`` is refused, since a value serves one constraint and comes in a file. Or an object, a
            :class:`textguide.smc.lookahead.Lookahead`.
        max_tries: of ``sampler="cars"``: tries of a row. One that none of them finished has weight 0, and says so.

    Raises:
        ValueError: a field has a value that cannot work; the message names it.
    """

    constraint: Any = None
    particles: int = 1
    ess_threshold: float = 0.5
    max_rejects: int | None = None
    critic: Callable[[str], float] | None = None
    sampler: str = "awrs"
    estimator: str = "auto"
    accepts: int = 2
    resampling: str = "stratified"
    after: str | Callable[[str], bool] | None = None
    lookahead: Any = "auto"
    max_tries: int = 100

    name = "awrs"
    former_names: ClassVar[Mapping[str, str]] = {"constraint_method": "sampler"}
    about = About(
        "2504.05410", "lc given a constraint, with weights", "`particles` rows a prompt", "no constraint",
        "texts that must satisfy a constraint", "awrs:constraint=regex:[0-9]+",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if isinstance(self.constraint, Mapping):
            self._put(constraint=_Described(self.constraint))
        whole_number("particles", self.particles, 1)
        whole_number("accepts", self.accepts, 2)
        whole_number("max_tries", self.max_tries, 1)
        if self.max_rejects is not None:
            whole_number("max_rejects", self.max_rejects, 1)
        self._put(ess_threshold=finite_number("ess_threshold", self.ess_threshold))
        if not 0.0 <= self.ess_threshold <= 1.0:
            raise ValueError(f"ess_threshold={self.ess_threshold} must lie in [0, 1], a share of the particles")
        for name, known in (("sampler", SAMPLERS), ("estimator", ESTIMATORS), ("resampling", RESAMPLING)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}")
        if self.after is not None and not (callable(self.after) or (isinstance(self.after, str) and self.after)):
            raise ValueError(f"after={self.after!r} must be a text, 'regex:PATTERN', a function of the text, or None")
        if self.after is not None and self.constraint is None:
            raise ValueError(f"after={self.after!r} needs a constraint, which holds behind it; give one")
        if isinstance(self.lookahead, os.PathLike):
            self._put(lookahead=os.fspath(self.lookahead))
        named = self.lookahead in LOOKAHEADS or (isinstance(self.lookahead, str) and os.path.exists(self.lookahead))
        if self.lookahead is not None and not named and not hasattr(self.lookahead, "begin"):
            raise ValueError(
                f"lookahead={self.lookahead!r} must be one of {', '.join(LOOKAHEADS)}, a file of 'textguide lookahead "
                "train', or None"
            )
        if self.critic is not None and not callable(self.critic):
            raise ValueError(f"critic={self.critic!r} must be a function from a text to a log potential, or None")
        if self.sampler == "mask" and (self.particles > 1 or self.critic is not None):
            what = f"particles={self.particles}" if self.particles > 1 else "critic"
            raise ValueError(f"{what} needs weights, and sampler='mask' gives none; use sampler='awrs'")
        if self.sampler == "cars" and self.critic is not None:
            raise ValueError("critic weighs texts, and those of sampler='cars' have equal weights; use sampler='asap'")

    @property
    def is_neutral(self) -> bool:
        """Every text is allowed, and nothing weighs it."""
        return self.critic is None and (self.constraint is None or bool(getattr(self.constraint, "is_neutral", False)))

    @property
    def weighs(self) -> bool:
        """Whether it draws tokens, with weights; ``sampler="mask"`` leaves the draw to ``generate``."""
        return self.sampler != "mask"

    @property
    def learns(self) -> bool:
        """Whether texts are proposed by what failed before."""
        return self.sampler in ("cars", "asap")

    @property
    def restarts(self) -> bool:
        """Whether a text that reaches a dead end starts again from its prompt."""
        return self.sampler == "cars"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a critic by its name, from which it cannot be made again."""
        values = super().to_dict()
        for name in ("after", "max_tries", "sampler"):  # one that says nothing leaves the fingerprint as it was
            if values[name] == type(self).__dataclass_fields__[name].default:
                del values[name]
        if callable(self.after):
            values["after"] = {"function": getattr(self.after, "__qualname__", repr(self.after))}
        if self.lookahead == "auto":
            del values["lookahead"]
        elif hasattr(self.lookahead, "begin"):
            values["lookahead"] = {"class": type(self.lookahead).__qualname__}
        if self.critic is not None:
            module = getattr(self.critic, "__module__", "")
            values["critic"] = f"{module}:{getattr(self.critic, '__qualname__', type(self.critic).__qualname__)}"
        return values


class _Described(dict[str, Any]):
    """A constraint as the dictionary that describes it, with a hash."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True, default=str))
