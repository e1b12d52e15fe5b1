"""Adaptive weighted rejection sampling under a constraint (Lipkin et al., arXiv 2504.05410), CARS and ASAp."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..support.checks import one_of, share, whole_number
from .base import About, TokenConstraint

SAMPLERS = ("awrs", "cars", "asap", "mask")
ESTIMATORS = ("auto", "recursive", "geometric")
LOOKAHEADS = ("auto", "automaton", "hmm", "value")
RESAMPLING = ("stratified", "systematic")


@dataclass(frozen=True)
class AWRS(TokenConstraint):
    """Generate texts that satisfy a constraint, distributed as the model's own texts given the constraint.

    Masking tokens step by step (``sampler="mask"``) samples ``Π p(x_t)/Z_t``, which favours prefixes with few valid
    continuations. AWRS draws the same tokens and gives each text the weight ``Π Z_t``, which corrects for that, with
    few queries to the constraint. ``particles`` texts per prompt are generated side by side and resampled by their
    weights. Samples in proportion to ``log_weights`` follow ``p(x | constraint)`` as the number of particles grows,
    and the mean weight is an unbiased estimate of the probability of the constraint.

    Two more samplers learn from failed texts. They keep a tree of the prefixes that were generated. For each prefix,
    the tree holds how much of the probability after it can still lead to a valid text, and later texts are proposed in
    proportion to that. The tree is shared by the rows of a prompt, by all batches of a run, and by all runs within
    :class:`textguide.Lessons`.

    * ``cars`` (constrained adaptive rejection sampling, arXiv 2510.01902): a text that reaches a dead end starts again
      from the prompt, up to ``max_tries`` times. Every finished text is an exact, independent draw from
      ``p(x | constraint)``; all weights are equal (``log_weights`` 0) and nothing is resampled. ``log_evidence`` is
      the number of accepted tries over ``Σ 1/bound``, because a try is accepted with probability
      ``p(constraint)/bound``. This estimate is consistent, not unbiased. Of a lookahead, only the ruled-out tokens are
      used.
    * ``asap`` (adaptive sampling with approximate expected futures, arXiv 2405.21047): every row is generated once,
      and the distribution of the rows approaches ``p(x | constraint)`` as the tree grows. In addition to the paper,
      each row has a weight, ``p`` divided by the probability with which it was drawn. Weighted rows are as unbiased as
      those of ``awrs`` from the first one on, and the weights become equal as the tree grows. Several particles are
      resampled by these weights.

    The distribution ``p`` is the one after guidance, processors and warpers (temperature, top-p…). A text ends with an
    end token. When the token limit comes first, the end token is forced and weighted accordingly, so ``p`` is the
    distribution of the texts that end in time, and a text that cannot end there has weight 0.

    Args:
        constraint: a constraint of ``textguide.constraints``, or a value that describes one: a pydantic model, a
            dataclass, a TypedDict, ``list[Model]``, an Enum, a ``Literal``, a list of texts, a compiled pattern, or a
            dictionary or string that describes a constraint. None allows every text.
        particles: number of texts per prompt, N. The output has prompts × particles rows.
        ess_threshold: resample a population when its effective sample size falls below this share of N.
        max_rejects: drop a particle (weight 0) after this many rejected tokens in one step. None: never.
        critic: ``critic(text) -> log φ(text)``, a score of the text so far, which lets resampling look ahead. Its
            values telescope: the final weight contains ``φ`` of the whole text and no other value of it. −inf drops a
            particle.
        sampler: ``awrs``; ``cars`` or ``asap``, see above; or ``mask``, which masks tokens before processors and
            warpers and computes no weights.
        estimator: ``recursive``, ``geometric`` (used if one token has 2/3 of the mass, or if ``accepts`` is above 2),
            or ``auto``, which picks the one with fewer queries. A constraint that knows its mask needs neither.
        accepts: number of accepted draws that the geometric estimator waits for; more draws make the weights less
            noisy.
        resampling: ``stratified`` or ``systematic``.
        after: free text comes first, and the constraint applies after this: a text such as ``"</think>"``,
            ``"regex:PATTERN"``, or a function that returns whether the text so far ends the free part. None: the
            constraint applies from the first token.
        lookahead: a model of how likely the text so far can still satisfy the constraint within the token limit.
            Tokens are drawn and particles are resampled with it, and the final weights correct for it, so that they
            stay unbiased, however rough it is. ``automaton``: compare the fewest tokens that complete a text with the
            tokens left, so that nothing is started that cannot end in time. ``auto``: the same, if the constraint has
            an automaton or is a JSON schema. None: no lookahead. The path of a file from
            ``textguide lookahead train``: a hidden Markov model of the model's texts, multiplied with that automaton,
            or a value head trained for this constraint. ``hmm``: the hidden Markov model that is bundled with
            textguide, for the tokens of the bundled model. ``value`` is refused, because a value head belongs to one
            constraint and comes as a file. Or a :class:`textguide.smc.lookahead.Lookahead` object.
        max_tries: for ``sampler="cars"``: number of tries per row. A row whose tries all fail has weight 0, and the
            result gives the reason.

    Raises:
        ValueError: a field has an invalid value; the message names it.
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
        paper="2504.05410",
        rule="lc given a constraint, with weights",
        passes="`particles` rows per prompt",
        neutral="no constraint",
        helps="texts that must satisfy a constraint",
        example="awrs:constraint=regex:[0-9]+",
    )

    def __post_init__(self) -> None:
        if isinstance(self.constraint, Mapping):
            self._put(constraint=_Described(self.constraint))
        elif isinstance(self.constraint, list):
            self._put(constraint=tuple(self.constraint))
        if not (self.constraint is None or isinstance(self.constraint, (str, Mapping))):
            _resolved(self.constraint)  # raises an error if it is not a constraint
        whole_number("particles", self.particles, 1)
        whole_number("accepts", self.accepts, 2)
        whole_number("max_tries", self.max_tries, 1)
        if self.max_rejects is not None:
            whole_number("max_rejects", self.max_rejects, 1)
        self._put(ess_threshold=share("ess_threshold", self.ess_threshold, "it is a share of the particles"))
        one_of("sampler", self.sampler, SAMPLERS)
        one_of("estimator", self.estimator, ESTIMATORS)
        one_of("resampling", self.resampling, RESAMPLING)
        self._check_after()
        self._check_lookahead()
        self._check_critic()

    def _check_after(self) -> None:
        if self.after is not None and not (callable(self.after) or (isinstance(self.after, str) and self.after)):
            raise ValueError(f"after={self.after!r} must be a text, 'regex:PATTERN', a function of the text, or None")
        if self.after is not None and self.constraint is None:
            raise ValueError(f"after={self.after!r} needs a constraint, which applies after it; pass one")

    def _check_lookahead(self) -> None:
        if isinstance(self.lookahead, os.PathLike):
            self._put(lookahead=os.fspath(self.lookahead))
        is_named = self.lookahead in LOOKAHEADS or (isinstance(self.lookahead, str) and os.path.exists(self.lookahead))
        if self.lookahead is not None and not is_named and not hasattr(self.lookahead, "begin"):
            raise ValueError(
                f"lookahead={self.lookahead!r} must be one of {', '.join(LOOKAHEADS)}, a file of 'textguide lookahead "
                "train', or None"
            )

    def _check_critic(self) -> None:
        if self.critic is not None and not callable(self.critic):
            raise ValueError(f"critic={self.critic!r} must be a function from a text to a log potential, or None")
        if self.sampler == "mask" and (self.particles > 1 or self.critic is not None):
            field = f"particles={self.particles}" if self.particles > 1 else "critic"
            raise ValueError(f"{field} needs weights, and sampler='mask' does not compute any; use sampler='awrs'")
        if self.sampler == "cars" and self.critic is not None:
            raise ValueError(
                "critic changes the weights of texts, and with sampler='cars' all weights are equal; use sampler='asap'"
            )

    @property
    def is_neutral(self) -> bool:
        """Whether every text is allowed and there is no critic."""
        return self.critic is None and (self.constraint is None or bool(getattr(self.constraint, "is_neutral", False)))

    @property
    def weighs(self) -> bool:
        """Whether it draws tokens, with weights. With ``sampler="mask"``, ``generate`` draws them."""
        return self.sampler != "mask"

    @property
    def learns(self) -> bool:
        """Whether failed texts change the proposals of later ones."""
        return self.sampler in ("cars", "asap")

    @property
    def restarts(self) -> bool:
        """Whether a text that reaches a dead end starts again from its prompt."""
        return self.sampler == "cars"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values. A critic is written as its name, from which it cannot be created again."""
        values = super().to_dict()
        if not (self.constraint is None or isinstance(self.constraint, (str, Mapping))):
            values["constraint"] = _resolved(self.constraint).to_dict()
        for name in ("after", "max_tries", "sampler"):
            # These fields were added later; at their defaults, earlier fingerprints stay valid.
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


def _resolved(value: Any) -> Any:
    """The constraint that a Python value describes."""
    from ..constraints.spec import resolve

    return resolve(value)


class _Described(dict[str, Any]):
    """A hashable dictionary that describes a constraint."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True, default=str))
