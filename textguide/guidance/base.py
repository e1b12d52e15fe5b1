"""Base classes of guidance: values that describe how to steer a model, and that run nothing.

A guidance is a frozen dataclass. It can be compared, hashed, printed and converted to and from JSON, and has a
fingerprint for result files and cache keys. It does not contain a model, a tokenizer or state. Its kind determines at
which point of a step it acts: a :class:`BranchGuidance` declares passes and combines their log-probabilities, a
:class:`TokenReweighting` then reweights the candidates, and a :class:`Sampling` chooses the tokens, under a constraint,
with weights, or by forking texts.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..support.showing import Block, Facts, Folded, Line, Shown
from .needs import Need
from .prompts import Prompt, to_json

if TYPE_CHECKING:
    from .edits import Edit
    from .views import View

SELF = ""
"""The name of the model that is being decoded, in :attr:`Branch.model`."""


@dataclass(frozen=True)
class Branch:
    """One extra forward pass: how it differs from the conditional one.

    Args:
        prompt: what the branch reads instead of the user's prompt: a text, token ids, chat messages, or a tuple with
            one of these per row. None has ``"last-token"`` semantics: the last token of the prompt, followed by the
            generated tokens; for an encoder-decoder, an empty source.
        system: keep the user's chat, but replace its system prompt with this one. Excludes ``prompt``.
        same_prompt: the branch reads the user's own prompt and only differs in the model.
        edit: a change to the user's own prompt, or a tuple with one change per row. Excludes ``prompt``, ``system``
            and ``same_prompt``.
        model: name of the model that runs the branch; empty for the model that is being decoded.
        view: the part of that model to run. None: all of it.
    """

    prompt: Prompt | tuple[Prompt, ...] | None = None
    system: str | None = None
    same_prompt: bool = False
    edit: Edit | tuple[Edit, ...] | None = None
    model: str = SELF
    view: View | None = None

    @property
    def need(self) -> Need | None:
        """What the branch requires in addition to running ``model`` again; None if nothing."""
        if self.edit is not None:
            return self.edit[0].need if isinstance(self.edit, tuple) else self.edit.need
        if self.system is not None:
            return Need.SYSTEM
        return None if self.same_prompt else Need.PROMPT

    @property
    def model_part(self) -> tuple[str, View | None]:
        """The model and the part of it that run the branch. Branches with the same pair share one pass."""
        return self.model, self.view


@dataclass(frozen=True)
class Step:
    """The position in the text at which distributions are combined.

    Args:
        progress: position in the generated text, 0 for its first token and 1 for the last one that the limit allows; a
            float, or a tensor (B, 1) if the rows are at different positions.
        rows: which rows of the batch these are, in order, for guidances that look across rows. None if the texts are
            not generated together.
        batch: number of rows that the batch had initially.
        copies: number of adjacent rows per prompt (``num_return_sequences``).
        likelihoods: the log-probability that each branch, the conditional one first, has given to the tokens that the
            row has generated so far, in nats, (n, B). Only set for guidances with
            :attr:`BranchGuidance.reads_likelihoods`.
        class_log_probs: the log-probability, by the guidance's classifier, of the class of each branch given the text
            so far, in nats, (n, B). Only set for guidances with :attr:`BranchGuidance.reads_class_log_probs`.
        scales: γ(s) of each row, (B, 1), if rows whose guidances only differ in γ are computed together.
    """

    progress: float | Tensor = 0.0
    rows: tuple[int, ...] | None = None
    batch: int = 0
    copies: int = 1
    likelihoods: Tensor | None = None
    class_log_probs: Tensor | None = None
    scales: Tensor | None = None

    @classmethod
    def at(
        cls,
        index: int,
        horizon: int,
        rows: Sequence[int] | None = None,
        batch: int = 0,
        copies: int = 1,
        likelihoods: Tensor | None = None,
        class_log_probs: Tensor | None = None,
    ) -> Step:
        """The step that writes token ``index`` (from 0) of at most ``horizon`` tokens."""
        progress = min(1.0, index / (horizon - 1)) if horizon > 1 else 0.0
        return cls(progress, None if rows is None else tuple(rows), batch, copies, likelihoods, class_log_probs)

    def pick(self, rows: Tensor) -> Step:
        """The same step for some rows, by their numbers (b,)."""
        return replace(
            self,
            progress=self.progress[rows] if isinstance(self.progress, Tensor) else self.progress,
            rows=None if self.rows is None else tuple(self.rows[row] for row in rows.tolist()),
            likelihoods=None if self.likelihoods is None else self.likelihoods[:, rows],
            class_log_probs=None if self.class_log_probs is None else self.class_log_probs[:, rows],
            scales=None if self.scales is None else self.scales[rows],
        )

    def to(self, device: Any) -> Step:
        """The same step with its tensors on ``device``."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved) if moved else self


AS_IN_PAPER = "as in the paper"
"""The mechanism of a method that does what its paper does."""


@dataclass(frozen=True)
class About:
    """The summary of a method that the documentation, the command line and the tables show.

    Args:
        paper: its arXiv number; empty if there is none.
        rule: the rule, in terms of the log-probabilities ``lc`` of the conditional branch and those of the others.
        passes: the cost in addition to the conditional pass.
        neutral: the setting that changes nothing.
        helps: when to use it, as the object of "use it for".
        example: a typical setting in the syntax of ``--guidance``. None: the name on its own, with all defaults.
        experimental: the paper leaves open what is done here, or describes it for other kinds of model. The docstring
            explains the difference.
        mechanism: what this implementation does differently from the paper, in one sentence.
        compared: settings that ``textguide eval --suite methods`` runs, in the syntax of ``--guidance``; or, as a
            text, the reason why it runs none.
    """

    paper: str
    rule: str
    passes: str
    neutral: str
    helps: str
    example: str | None = None
    experimental: bool = False
    mechanism: str = AS_IN_PAPER
    compared: tuple[str, ...] | str = ()


LONGEST_VALUE = 60
"""Characters of a field's value in messages."""
ROW = "one row in the same pass"
"""The cost of a branch of the model that is decoded."""


class Guidance(Shown, ABC):
    """How to steer a model while it generates.

    Subclasses are frozen dataclasses with a ``name``, under which they are registered for JSON and the command line,
    and an ``about``, from which tables are generated. They derive from one of the kinds below.
    """

    name: ClassVar[str]
    about: ClassVar[About]
    registry: ClassVar[dict[str, type[Guidance]]] = {}
    former_names: ClassVar[Mapping[str, str]] = {}
    """Earlier names of fields in JSON, which are still accepted, with the current names."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            cls.registry[cls.name] = cls

    @property
    def is_neutral(self) -> bool:
        """Whether this guidance never changes anything, so that it does not have to run."""
        return False

    @property
    def parts(self) -> tuple[Guidance, ...]:
        """The guidances that act: this one, or those that it consists of."""
        return (self,)

    @property
    def needs(self) -> frozenset[Need]:
        """What the guidance requires of the place in which it runs; see :mod:`textguide.guidance.places`."""
        return frozenset()

    @property
    def is_timed(self) -> bool:
        """Whether its effect depends on ``step.progress``."""
        return False

    def __str__(self) -> str:
        """The class with γ and the fields that differ from their defaults, for messages."""
        shown = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value != field.default or field.name == "scale":
                text = repr(value)
                shown.append(f"{field.name}={text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + '…'}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _put(self, **values: Any) -> None:
        """Set fields of this frozen dataclass. Only ``__post_init__`` may call this."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _shown(self) -> tuple[str, Sequence[Block]]:
        about = getattr(type(self), "about", None)
        settings: list[tuple[str, str]] = []
        defaults: list[tuple[str, str]] = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            text = value if isinstance(value, str) else repr(value)
            is_default = value == field.default and field.name != "scale"
            (defaults if is_default else settings).append((field.name, text))
        blocks: list[Block] = [Facts(tuple(settings))] if settings else []
        if about is not None:
            paper = f"; arXiv {about.paper}" if about.paper else ""
            blocks = [Line(about.rule), *blocks, Line(f"neutral at {about.neutral}{paper}", quiet=True)]
        if self.is_neutral:
            blocks.append(Line("with these settings it changes nothing"))
        if defaults:
            blocks.append(Folded(f"{len(defaults)} fields at their defaults", (Facts(tuple(defaults)),)))
        return f"{type(self).__name__} ({self.name})", blocks

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the method's name and every field."""
        values = {field.name: to_json(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        return {"method": self.name, **values}

    def to_json(self) -> str:
        """:meth:`to_dict` as canonical JSON text."""
        return json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=False)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that differ whenever a field differs."""
        return hashlib.sha256(self.to_json().encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Guidance:
        """Create a guidance from the dictionary that :meth:`to_dict` returned.

        Raises:
            ValueError: the method is unknown, a field is not one of its fields, or one without a default is missing.
        """
        values = dict(values)
        method = values.pop("method", None)
        subclass = cls.registry.get(method) if isinstance(method, str) else None
        if subclass is None:
            raise ValueError(f"method={method!r} is not a guidance; use one of {', '.join(sorted(cls.registry))}")
        values = {subclass.former_names.get(key, key): value for key, value in values.items()}
        known = {field.name for field in fields(subclass)}  # type: ignore[arg-type]
        for key in values:
            if key not in known:
                raise ValueError(f"{key!r} is not a field of {method}; its fields are {', '.join(sorted(known))}")
        missing = subclass.missing_fields(values)
        if missing:
            raise ValueError(f"{method} needs {' and '.join(missing)}; add {'it' if len(missing) == 1 else 'them'}")
        return subclass(**values)

    @classmethod
    def missing_fields(cls, values: Collection[str]) -> list[str]:
        """The fields without a default that are not among the names ``values``."""
        missing = []
        for field in fields(cls):  # type: ignore[arg-type]
            if field.default is MISSING and field.default_factory is MISSING and field.name not in values:
                missing.append(field.name)
        return missing

    @classmethod
    def from_json(cls, text: str) -> Guidance:
        """Create a guidance from the text that :meth:`to_json` returned."""
        return cls.from_dict(json.loads(text))


def parts_of(guidance: Guidance | None) -> tuple[Guidance, ...]:
    """The guidances that act: :attr:`Guidance.parts`, or none if ``guidance`` is None."""
    return () if guidance is None else guidance.parts


class BranchGuidance(Guidance):
    """Declares passes in addition to the conditional one, and a rule that combines their log-probabilities."""

    renormalize: bool = True
    skip_threshold: float | None = None
    across_rows: ClassVar[bool] = False
    """Whether the result of a row depends on the other rows, so that rows have to keep their positions."""
    reads_likelihoods: ClassVar[bool] = False
    """Whether it needs :attr:`Step.likelihoods`; its branches are then run at every step."""
    reads_class_log_probs: ClassVar[bool] = False
    """Whether it needs :attr:`Step.class_log_probs`, from its ``classifier``, ``include_prompt`` and ``classes``."""

    @property
    @abstractmethod
    def branches(self) -> tuple[Branch, ...]:
        """The extra passes, in the order in which :meth:`combine` receives them after the conditional one."""

    @property
    def view(self) -> View | None:
        """The part of the model that the conditional pass runs. None: the model as it is."""
        return None

    @property
    def needs(self) -> frozenset[Need]:
        """What the branches, the conditional pass and the rule require."""
        needs: set[Need] = set()
        for branch in self.branches:
            if branch.need is not None:
                needs.add(branch.need)
            if branch.model != SELF:
                needs.add(Need.MODEL)
            if branch.view is not None:
                needs.add(Need.PART)
        if self.view is not None:
            needs.add(Need.PART)
        if self.reads_likelihoods:
            needs.add(Need.LIKELIHOODS)
        if self.reads_class_log_probs:
            needs.add(Need.CLASS_LOG_PROBS)
        if self.across_rows:
            needs.add(Need.ROWS)
        return frozenset(needs)

    @abstractmethod
    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """The rule: guided scores (B, V), from the log-probabilities of the branches.

        A pure function: the same input gives the same output. The scores need not be normalised; the step does that
        unless ``renormalize`` is off. Call :func:`textguide.step.guided_step.combine_branches` instead if a branch may
        contain −inf.

        Args:
            logp: normalised float32 log-probabilities (n, B, V), all finite; ``logp[0]`` is the conditional branch. V
                is the number of tokens that no branch forbids.
            step: the position in the text.
        """

    def active(self, step: Step) -> bool:
        """Whether the extra branches count at this step; if not, they are not run. ``step.progress`` is a float."""
        return True

    def factors(self, branches: int) -> tuple[int, ...]:
        """The branches whose probabilities the rule adds or multiplies, by their index in ``logp``.

        If one of these forbids a token, its probability there is 0. All other branches only enter through their ratio
        to the conditional branch. This ratio does not exist for a token that they forbid, so the token keeps its
        conditional log-probability.

        Args:
            branches: number of branches, including the conditional one.
        """
        return ()

    @property
    def ignores_shifts(self) -> bool:
        """Whether adding a constant to a branch only adds a constant to the scores, so that logits can be used as they
        are."""
        return False

    @property
    def is_elementwise(self) -> bool:
        """Whether the score of a token only depends on the log-probabilities of that token, so that tokens that a
        branch forbids do not have to be left out before the rule is applied. A rule with :meth:`factors` is not."""
        return False

    @property
    def rule(self) -> Hashable:
        """A key for rows that can be computed together: guidances with the same key only differ in their branches and
        in the values that :meth:`step_of_rows` puts into the step."""
        return self

    def step_of_rows(self, guidances: Sequence[BranchGuidance], steps: Sequence[Step]) -> Step:
        """One step for several rows, each with its own guidance of the same :attr:`rule` and its own step."""
        progress = [[float(step.progress)] for step in steps]
        return Step(torch.tensor(progress))

    def keeps_equal_branches(self) -> bool:
        """Whether a row whose branches are all the same keeps its distribution. A plausibility mask would change it."""
        logp = torch.linspace(-3.0, 3.0, 9).log_softmax(-1).repeat(len(self.branches) + 1, 1, 1)
        zeros = logp.new_zeros(logp.shape[:2])
        step = Step(likelihoods=zeros, class_log_probs=zeros)
        return torch.allclose(self.combine(logp, step).log_softmax(-1), logp[0], atol=1e-5)


class TokenReweighting(Guidance):
    """Reweights the candidates for the next token, after the branches have been combined.

    Several reweightings see the same distribution, and their weights add up.
    """

    weight: float
    top_k: int | None

    @property
    def needs(self) -> frozenset[Need]:
        """The texts of the candidates."""
        return frozenset({Need.CANDIDATES})


class Sampling(Guidance):
    """Chooses the tokens of each prompt's rows, after everything else has changed their distribution.

    Rows of one prompt form a population: they may have weights, be resampled, fork, or start again. A run uses at most
    one sampling guidance.
    """

    particles: int = 1
    """Rows per prompt."""
    constraint: Any = None
    """The constraint that every text has to satisfy. None: no constraint."""
    rows_field: ClassVar[str] = "particles"
    """The field that sets the number of rows per prompt, for error messages."""

    @property
    def weighs(self) -> bool:
        """Whether it draws the tokens itself and gives every text a weight."""
        return False

    @property
    def forks(self) -> bool:
        """Whether a text may fork into another row of its prompt."""
        return False

    @property
    def learns(self) -> bool:
        """Whether failed texts change the distribution of later ones."""
        return False

    @property
    def restarts(self) -> bool:
        """Whether a text that fails starts again from its prompt."""
        return False

    @property
    def corrects(self) -> bool:
        """Whether texts are weighted by the normalisers of the guided scores, so that they follow their product."""
        return False

    def product(self, branching: BranchGuidance) -> BranchGuidance:
        """The guidance with branches that a run uses: not normalised if this guidance :attr:`corrects`."""
        return branching

    @property
    def moves_rows(self) -> bool:
        """Whether a row may continue another row's text, or start again."""
        return self.particles > 1 or self.learns or self.corrects


class TokenConstraint(Sampling):
    """Rules out tokens after which a text can no longer satisfy a constraint."""

    @property
    def needs(self) -> frozenset[Need]:
        """Constrained draws, and weights if a prompt has several rows."""
        return frozenset({Need.CONSTRAINT, Need.WEIGHTS} if self.particles > 1 else {Need.CONSTRAINT})
