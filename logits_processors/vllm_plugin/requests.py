"""Guided requests as values that travel from process to process, and what an engine can take. Knows no vLLM."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from textguide.guidance import AWRS, CAIF, BranchGuidance, Guidance, Step

from .adapters import Adapter
from .constraints import EngineConstraints

ENGINES_CLASSIFIER = "the engine's"
MAIN = 0
"""The place of the main request in its group; branch requests have the places 1, 2, …"""


@dataclass(frozen=True)
class Draw:
    """How the next token is taken from the guided distribution.

    The token of a group is drawn outside of vLLM's sampler. So this is taken from the client's sampling parameters,
    and the engine sees the request as greedy.

    Args:
        temperature: 0 takes the most likely token.
        top_k: 0 keeps every token.
        top_p: 1 keeps every token.
        min_p: 0 keeps every token.
        seed: of the request's own random numbers.
        repetition_penalty: for tokens of prompt and text; 1 changes nothing.
        presence_penalty: subtracted from the scores of tokens that were written.
        frequency_penalty: subtracted from the scores of tokens, once for each time that they were written.
        logprobs: number of log-probabilities of the guided distribution to report besides that of the token; None:
            none.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None

    @classmethod
    def of(cls, params: Any) -> Draw:
        """From vLLM's sampling parameters; a seed is drawn if the client gave none."""
        return cls(
            temperature=float(params.temperature),
            top_k=max(int(params.top_k), 0),
            top_p=float(params.top_p),
            min_p=float(params.min_p),
            seed=random.getrandbits(62) if params.seed is None else int(params.seed),
            repetition_penalty=float(params.repetition_penalty),
            presence_penalty=float(params.presence_penalty),
            frequency_penalty=float(params.frequency_penalty),
            logprobs=params.logprobs,
        )


@dataclass(frozen=True)
class Request:
    """A guided request.

    Args:
        guidance: how the branches are combined; None if there is only a classifier or a constraint.
        prompts: token ids that each branch request reads.
        readings: for each branch of the guidance, the place of the request that reads it (0: the main one) and the
            model whose log-probabilities count (empty: the served one).
        draw: how tokens are drawn.
        horizon: the longest continuation, which defines progress.
        effect: whether the effect of guidance is measured and reported with the answer.
        caif: how a classifier reweights the distribution; the classifier is the engine's, and does not travel.
        awrs: how tokens are drawn under a constraint, described as :func:`~.constraint_arguments.awrs_of` returns it.
        limit: most tokens of the text.
        weighs: whether each text is weighed by what normalising the guidance divides by.
        adapters: the adapter that each branch request runs with; empty: all have the main request's.
        sees: which images each branch request sees (:mod:`~.images`); None if the prompt has none.
        population: how texts are drawn and resampled together, with a constraint as in ``awrs``, which is then None;
            None if the request writes a single text.
        critic: the name of the engine's critic that weighs the texts of the population; None: none.
    """

    guidance: BranchGuidance | None = None
    prompts: tuple[tuple[int, ...], ...] = ()
    readings: tuple[tuple[int, str], ...] = ()
    draw: Draw = Draw()
    horizon: int = 1
    effect: bool = False
    caif: tuple[CAIF, ...] = ()
    awrs: AWRS | None = None
    limit: int = 1
    weighs: bool = False
    adapters: tuple[Adapter, ...] = ()
    sees: tuple[str, ...] | None = None
    population: AWRS | None = None
    critic: str | None = None

    @property
    def particles(self) -> int:
        """Number of texts that are written together."""
        return 1 if self.population is None else self.population.particles

    @property
    def is_plain(self) -> bool:
        """Whether nothing changes how the request is decoded."""
        return self.guidance is None and not self.caif and self.awrs is None and self.population is None

    def acts(self, position: int) -> bool:
        """Whether the branches count for the token at ``position``."""
        return self.guidance is not None and self.guidance.active(Step.at(position, self.horizon))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the way from process to process."""
        return {
            "guidance": self.guidance and self.guidance.to_dict(),
            "prompts": [list(prompt) for prompt in self.prompts],
            "readings": [list(reading) for reading in self.readings],
            "draw": dataclasses.asdict(self.draw),
            "horizon": self.horizon,
            "effect": self.effect,
            "caif": [_fields(caif, without="classifier") for caif in self.caif],
            "awrs": self.awrs and _fields(self.awrs),
            "limit": self.limit,
            "weighs": self.weighs,
            "adapters": [adapter.to_dict() for adapter in self.adapters],
            "sees": None if self.sees is None else list(self.sees),
            "population": self.population and _fields(self.population),
            "critic": self.critic,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], classifier: Any = ENGINES_CLASSIFIER) -> Request:
        """The request that :meth:`to_dict` described; ``classifier`` is the engine's."""
        guidance: Any = values["guidance"] and Guidance.from_dict(values["guidance"])
        return cls(
            guidance=guidance,
            prompts=tuple(map(tuple, values["prompts"])),
            readings=tuple((place, model) for place, model in values["readings"]),
            draw=Draw(**values["draw"]),
            horizon=values["horizon"],
            effect=values["effect"],
            caif=tuple(CAIF(classifier, **fields) for fields in values["caif"]),
            awrs=values["awrs"] and AWRS(**values["awrs"]),
            limit=values["limit"],
            weighs=values["weighs"],
            adapters=tuple(Adapter(**fields) for fields in values["adapters"]),
            sees=None if values["sees"] is None else tuple(values["sees"]),
            population=values["population"] and AWRS(**values["population"]),
            critic=values["critic"],
        )


@dataclass(frozen=True)
class Limits:
    """What an engine can take.

    Args:
        tokenizer: for negative prompts that are texts or chats; None if the engine has none.
        vocabulary: number of tokens.
        longest: the engine's ``max_model_len``; a branch request needs room for at least one token after its prompt.
        classifier: the one that the engine was started with, or its name; None: none.
        classifier_name: the name that requests use for it.
        constraints: makes those of requests; None if the engine cannot.
        models: names of the further models of the engine.
        adapters: those of the engine and the base model, by name; empty: none.
        most_adapters: number of adapters that may run in one step.
        places: ``max_num_seqs``; None: not known, here and below.
        budget: ``max_num_batched_tokens``.
        blocks: of the cache.
        block_size: tokens of a block.
        why_no_populations: a clause that explains why texts cannot be resampled together; None if they can.
        priors: file and fingerprint of the token priors that the engine was started with, by name.
    """

    tokenizer: Any = None
    vocabulary: int | None = None
    longest: int | None = None
    classifier: Any = None
    classifier_name: str | None = None
    constraints: EngineConstraints | None = None
    models: tuple[str, ...] = ()
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    most_adapters: int | None = None
    places: int | None = None
    budget: int | None = None
    blocks: int | None = None
    block_size: int = 16
    why_no_populations: str | None = None
    priors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _fields(value: Any, without: str = "") -> dict[str, Any]:
    return {one.name: getattr(value, one.name) for one in dataclasses.fields(value) if one.name != without}
