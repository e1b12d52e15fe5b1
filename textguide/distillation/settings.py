"""How an adapter is trained: everything that has to be the same for a run to go on, or to come out the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..guidance import CFG, Guidance, split, with_scale
from .objectives import OBJECTIVES, Objective

SOURCES = ("plain", "guided", "given")
"""Who writes the texts: the model by itself, the model under guidance, or the user."""
POSITIONS = ("all", "continuation")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class DistillSettings:
    """How an adapter is trained.

    Args:
        objective: ``forward-kl`` (the default) or ``reverse-kl`` to the guided distribution; ``likelihood`` of texts by
            their weights; ``cca``, ``gft``, ``model-guidance``: see :mod:`textguide.distillation.objectives`.
        source: who writes the texts: ``plain`` (the model), ``guided`` (the model under guidance, as AGD does) or
            ``given``; or a share of each, such as ``"plain=0.5,given=0.5"``.
        positions: ``all``: each token of a text, its prompt included, is the end of a prompt, and the next token is
            the first that guidance acts on. ``continuation``: guidance acts along what was written behind the prompt.
            None: ``all`` where nothing but the last token is read by the other branch, and guidance is the same at
            every step.
        scales: values of γ; steps take them in turn, and the adapter's strength follows γ. Empty: the guidance's own.
        texts: how many are written.
        tokens: longest text, prompt and continuation together.
        steps: of the optimiser.
        batch_size: texts a step.
        learning_rate: of AdamW, at its highest: it rises over a twentieth of the steps and falls to 0 along the others.
        rank: of the LoRA.
        targets: modules that are adapted: a name, several with commas between them, or PEFT's ``all-linear``.
        mixed_precision: ``no``, ``bf16`` or ``fp16``, for accelerate.
        seed: of texts, order and first weights.

    Raises:
        ValueError: a field has a value that cannot work; the message names it.
    """

    objective: str = "forward-kl"
    source: str = "plain"
    positions: str | None = None
    scales: tuple[float, ...] = ()
    texts: int = 960
    tokens: int = 70
    steps: int = 120
    batch_size: int = 8
    learning_rate: float = 5e-4
    rank: int = 16
    targets: str = "all-linear"
    mixed_precision: str = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective={self.objective!r} is none; use one of {', '.join(OBJECTIVES)}")
        if self.positions not in (None, *POSITIONS):
            raise ValueError(f"positions={self.positions!r} must be one of {', '.join(POSITIONS)}, or None")
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(f"mixed_precision={self.mixed_precision!r} must be one of {', '.join(PRECISIONS)}")
        for name in ("texts", "tokens", "steps", "batch_size", "rank"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of 1 or more")
        if self.tokens < 2:
            raise ValueError(f"tokens={self.tokens} leaves nothing to predict; use 2 or more")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate={self.learning_rate} must be a number above 0")
        if not all(math.isfinite(scale) for scale in self.scales):
            raise ValueError(f"scales={self.scales} must be finite numbers")
        self.shares  # noqa: B018

    @property
    def shares(self) -> dict[str, int]:
        """How many texts come from each source."""
        parts = [part.partition("=") for part in self.source.split(",")]
        try:
            weights = {name.strip(): float(number) if equals else 1.0 for name, equals, number in parts}
        except ValueError:
            weights = {}
        whole = sum(weights.values())
        if (
            not weights
            or set(weights) - set(SOURCES)
            or not all(0 <= one < math.inf for one in weights.values())
            or not whole
        ):
            raise ValueError(
                f"source={self.source!r} must be one of {', '.join(SOURCES)}, or shares such as 'plain=0.5,given=0.5'"
            )
        counts = {name: round(self.texts * weight / whole) for name, weight in weights.items()}
        last = next(reversed(counts))
        counts[last] += self.texts - sum(counts.values())
        return {name: count for name, count in counts.items() if count > 0}

    def made(self) -> Objective:
        """The objective."""
        return OBJECTIVES[self.objective]()

    def taught(self, guidance: Guidance) -> Sequence[tuple[float, Guidance]]:
        """γ and the guidance at γ, for the steps in turn; γ = 1, at which the adapter does nothing, is left out.

        Raises:
            ValueError: the objective or the scales do not go with ``guidance``.
        """
        objective = OBJECTIVES[self.objective]
        own = split(guidance).branching
        if objective.needs_contrast and not (type(own) is CFG and not own.is_timed and own == guidance):
            raise ValueError(
                f"objective={self.objective!r} takes γ and both branches of classifier-free guidance; "
                f"{guidance.name!r} has others: use objective='forward-kl'"
            )
        if not self.scales:
            scale = float(getattr(own, "scale", 0.0)) if type(own) is CFG else 2.0
            return [(scale, guidance)]
        scales = [scale for scale in self.scales if scale != 1.0]
        if not scales:
            raise ValueError(f"scales={list(self.scales)} trains nothing: γ = 1 changes nothing; give another one")
        return [(scale, with_scale(guidance, scale)) for scale in scales]

    def check(self, guidance: Guidance) -> None:
        """Refuse what cannot be learned.

        Raises:
            ValueError: ``guidance`` changes nothing, or rules out texts while the objective looks at single steps.
        """
        taught = self.taught(guidance)
        if all(one.is_neutral for _, one in taught):
            raise ValueError(f"guidance={guidance.name!r} changes nothing as it is set; there is nothing to distil")
        if split(guidance).sampling is not None and (self.objective != "likelihood" or set(self.shares) != {"guided"}):
            raise ValueError(
                f"guidance={guidance.name!r} weighs whole texts, which no single step tells; use "
                "objective='likelihood' and source='guided'"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "scales": list(self.scales)}
