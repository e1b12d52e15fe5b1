"""How an adapter is trained: everything that the result depends on, and that must not change when a run is resumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..guidance import CFG, Guidance, split, with_scale
from ..support.checks import finite_number, one_of, whole_number
from .objectives import OBJECTIVES, Objective

SOURCES = ("plain", "guided", "given")
"""Sources of texts: the model in plain decoding, the model under guidance, or the user."""
POSITIONS = ("all", "continuation")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class DistillSettings:
    """How an adapter is trained.

    Args:
        objective: ``forward-kl`` (the default) or ``reverse-kl`` to the guided distribution; ``likelihood`` of weighted
            texts; ``cca``, ``gft``, ``model-guidance``: see :mod:`textguide.distillation.objectives`.
        source: where the texts come from: ``plain`` (the model writes them), ``guided`` (the model writes them under
            guidance, as in AGD) or ``given``; or a share for each, such as ``"plain=0.5,given=0.5"``.
        positions: ``all``: each token of a text, its prompt included, is the end of a prompt, and the next token is the
            first one that is guided. ``continuation``: all tokens after the prompt are guided. None: ``all`` if the
            other branch only reads the last token and guidance is the same at every step.
        scales: values of γ, used by the steps in turn; the strength of the adapter is set to match γ. If empty, the
            guidance's own γ is used.
        texts: number of texts.
        tokens: the largest number of tokens of a text, prompt and continuation together.
        steps: number of optimizer steps.
        batch_size: texts per step.
        learning_rate: the highest learning rate of AdamW. It rises during the first twentieth of the steps and then
            falls to 0.
        rank: rank of the LoRA adapter.
        targets: modules that get an adapter: a name, several names separated by commas, or PEFT's ``all-linear``.
        mixed_precision: ``no``, ``bf16`` or ``fp16``, for accelerate.
        seed: seed of the texts, their order, and the initial weights.

    Raises:
        ValueError: a field has an invalid value; the message names it.
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
        one_of("objective", self.objective, OBJECTIVES)
        one_of("positions", self.positions, (None, *POSITIONS))
        one_of("mixed_precision", self.mixed_precision, PRECISIONS)
        object.__setattr__(self, "scales", tuple(finite_number("scales", scale) for scale in self.scales))
        for name in ("texts", "tokens", "steps", "batch_size", "rank"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))
        if self.tokens < 2:
            raise ValueError(f"tokens={self.tokens} leaves nothing to predict; use 2 or more")
        object.__setattr__(self, "learning_rate", finite_number("learning_rate", self.learning_rate))
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be a number above 0")
        self._weights_of_sources()

    def _weights_of_sources(self) -> dict[str, float]:
        """The share of each source, not normalised.

        Raises:
            ValueError: ``source`` does not specify any.
        """
        weights: dict[str, float] = {}
        for part in self.source.split(","):
            name, equals, number = part.partition("=")
            try:
                weights[name.strip()] = float(number) if equals else 1.0
            except ValueError:
                weights[name.strip()] = math.nan
        are_numbers = all(0 <= weight < math.inf for weight in weights.values())
        if set(weights) - set(SOURCES) or not are_numbers or sum(weights.values()) == 0:
            raise ValueError(
                f"source={self.source!r} must be one of {', '.join(SOURCES)}, or shares such as 'plain=0.5,given=0.5'"
            )
        return weights

    @property
    def texts_by_source(self) -> dict[str, int]:
        """The number of texts from each source."""
        weights = self._weights_of_sources()
        total = sum(weights.values())
        counts = {name: round(self.texts * weight / total) for name, weight in weights.items()}
        last = next(reversed(counts))
        counts[last] += self.texts - sum(counts.values())
        return {name: count for name, count in counts.items() if count > 0}

    def build_objective(self) -> Objective:
        """The objective with its default parameters."""
        return OBJECTIVES[self.objective]()

    def guidance_by_step(self, guidance: Guidance) -> Sequence[tuple[float, Guidance]]:
        """γ and the guidance at γ, used by the steps in turn.

        γ = 1 is left out, because the adapter has no effect there.

        Raises:
            ValueError: the objective or the scales cannot be used with ``guidance``.
        """
        objective = OBJECTIVES[self.objective]
        branching = split(guidance).branching
        if objective.needs_contrast:
            is_plain_cfg = type(branching) is CFG and not branching.is_timed and branching == guidance
            if not is_plain_cfg:
                raise ValueError(
                    f"objective={self.objective!r} uses γ and both branches of classifier-free guidance, which "
                    f"{guidance.name!r} does not have; use objective='forward-kl'"
                )
        if not self.scales:
            # Other guidances have no γ, so any number stands for the one strength of the adapter.
            scale = branching.scale if type(branching) is CFG else 2.0
            return [(float(scale), guidance)]
        scales = [scale for scale in self.scales if scale != 1.0]
        if not scales:
            raise ValueError(f"scales={list(self.scales)} trains nothing: γ = 1 changes nothing; use another scale")
        return [(scale, with_scale(guidance, scale)) for scale in scales]

    def check(self, guidance: Guidance) -> None:
        """Refuse a guidance that cannot be learned with these settings.

        Raises:
            ValueError: ``guidance`` changes nothing, or it weights whole texts and the objective uses single steps.
        """
        if all(at_scale.is_neutral for _, at_scale in self.guidance_by_step(guidance)):
            raise ValueError(f"guidance={guidance.name!r} changes nothing as it is set; there is nothing to distil")
        learns_whole_texts = self.objective == "likelihood" and set(self.texts_by_source) == {"guided"}
        if split(guidance).sampling is not None and not learns_whole_texts:
            raise ValueError(
                f"guidance={guidance.name!r} weights whole texts, which cannot be learned from single steps; use "
                "objective='likelihood' and source='guided'"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "scales": list(self.scales)}
