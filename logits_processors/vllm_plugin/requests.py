"""What is asked of a guided vLLM engine, as values that travel from process to process. Knows no vLLM."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from textguide.guidance import AWRS, CAIF, BranchGuidance, Guidance, Step

from .adapters import Adapter
from .constraints import EngineConstraints

ENGINES = "the engine's"
MAIN = 0
"""The place of the main request in its group; branch requests have the places 1, 2, …"""


@dataclass(frozen=True)
class Draw:
    """How the next token is taken from the guided distribution. That of a group is computed outside of vLLM's sampler,
    so this is taken from the user's sampling parameters, which the engine then sees as greedy.

    Args:
        temperature: 0 takes the most likely token.
        top_k: 0 keeps every token.
        top_p: 1 keeps every token.
        min_p: 0 keeps every token.
        seed: of this request's own random numbers.
        repetition_penalty: over prompt and text, 1 changes nothing.
        presence_penalty: subtracted from tokens that were written.
        frequency_penalty: subtracted from tokens for every time they were written.
        logprobs: how many log-probabilities of the guided distribution to report beside that of the token; None: none.
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
        """From vLLM's sampling parameters; a seed is drawn where the user gave none."""
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
        guidance: how the branches are combined; None for a classifier or a constraint alone.
        prompts: token ids that each branch request reads.
        readings: for each branch of the guidance, the place of the request that reads it (0: the main one) and the
            model whose log-probabilities count (empty: the one that is served).
        draw: how tokens are taken.
        horizon: the longest continuation, which defines progress.
        effect: whether what guidance did is to be measured and reported with the answer.
        caif: how a classifier reweights the distribution; the classifier is the engine's, and does not travel.
        awrs: how tokens are drawn under a constraint, which is described as :func:`~.constraints.asked` does.
        limit: most tokens of the text.
        adapters: the adapter that each branch request runs with; empty: that of the main request for all.
        sees: which images each branch request sees (:mod:`~.images`); None where the request has none.
        weighs: whether each text is weighed by what normalising the guidance divides by.
        population: how texts are drawn and resampled together, their constraint as in ``awrs``, which is then None;
            None where each is written by itself.
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
        """Texts that are written together."""
        return 1 if self.population is None else self.population.particles

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
            "caif": [_fields(one, "classifier") for one in self.caif],
            "awrs": self.awrs and _fields(self.awrs),
            "limit": self.limit,
            "weighs": self.weighs,
            "adapters": [one.to_dict() for one in self.adapters],
            "sees": None if self.sees is None else list(self.sees),
            "population": self.population and _fields(self.population),
            "critic": self.critic,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], classifier: Any = ENGINES) -> Request:
        """The request that :meth:`to_dict` described; ``classifier`` is the engine's."""
        guidance: Any = values["guidance"] and Guidance.from_dict(values["guidance"])
        return cls(
            guidance,
            tuple(map(tuple, values["prompts"])),
            tuple((place, model) for place, model in values["readings"]),
            Draw(**values["draw"]),
            values["horizon"],
            values["effect"],
            tuple(CAIF(classifier, **one) for one in values["caif"]),
            values["awrs"] and AWRS(**values["awrs"]),
            values["limit"],
            values["weighs"],
            tuple(Adapter(**one) for one in values["adapters"]),
            None if values["sees"] is None else tuple(values["sees"]),
            values["population"] and AWRS(**values["population"]),
            values["critic"],
        )


@dataclass(frozen=True)
class Limits:
    """What an engine can take.

    Args:
        tokenizer: for negative prompts that are texts or chats; None where the engine has none.
        vocabulary: number of tokens.
        longest: the engine's ``max_model_len``; at least one token must fit behind what a branch request reads.
        classifier: the one that the engine was started with, or its name; None: none.
        classifier_name: how requests name it.
        constraints: makes those of requests; None where the engine cannot.
        models: names of the further models that the engine holds.
        adapters: those that the engine has, and the base model, by name; empty: none.
        most_adapters: how many of them may run in one step.
        places: ``max_num_seqs``; None: not known, as below.
        budget: ``max_num_batched_tokens``.
        blocks: of the cache.
        block_size: tokens of a block.
        lone: a clause that says why texts cannot be resampled together here; None where they can.
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
    lone: str | None = None


def _fields(value: Any, *but: str) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.name not in but}
