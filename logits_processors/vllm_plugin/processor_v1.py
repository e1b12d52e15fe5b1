"""The guided distribution inside vLLM's first model runner. Knows no vLLM but the shape of what it receives."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .batch_rows import GroupRows, Member, Rows
from .channel import Outbox
from .combination import GuidedRow, guide, messages
from .constraints import EngineConstraints
from .extras import OURS, constraints_of, critics_of
from .further_models import logits_of
from .particles import LEAST_KEPT, Particle, Populations
from .requests import MAIN, Request
from .reweighting import Reweighting, classifier_of
from .wrapping import wrap_once

Tokens = Callable[[], list[int]]
ALTERING = ("logit_bias", "allowed_token_ids", "bad_words", "min_tokens")
"""Sampling parameters by which vLLM changes logits before it calls the processor."""


def remember_logits(sampler: Any) -> None:
    """Let the processor see the logits of a step before vLLM alters them.

    Args:
        sampler: vLLM's class ``Sampler``.
    """

    def wrapper(alter: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def apply_logits_processors(self: Any, logits: Tensor, metadata: Any, *args: Any, **kwargs: Any) -> Tensor:
            for processor in metadata.logitsprocs.non_argmax_invariant:
                if isinstance(processor, FirstRunnerProcessor):
                    processor.remember(logits)
            return alter(self, logits, metadata, *args, **kwargs)

        return apply_logits_processors

    wrap_once(sampler, "apply_logits_processors", wrapper)


class FirstRunnerProcessor:
    """Combines the rows of guided requests with those of their branch requests; other rows are not touched.

    Args:
        vllm_config: vLLM's ``VllmConfig``.
        device: of the logits.
        is_pin_memory: not used.
    """

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self.rows: Rows[GuidedRow | None] = Rows()
        self.outbox = Outbox()
        self.resources = EngineResources.of(vllm_config)
        self.models = logits_of(vllm_config)
        self.verified: Set[int] = frozenset()  # rows whose tokens were drawn in this step already
        self.unaltered: dict[int, Tensor] = {}

    def is_argmax_invariant(self) -> bool:
        """False: guidance changes the most likely token."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow what was removed, added and moved; vLLM requires this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.rows.remove(row)
        for row, params, prompt, written in batch_update.added:
            self.rows.add(row, self._member(params, prompt, written))
        for source, target, direction in batch_update.moved:
            self.rows.move(source, target, direction.name == "SWAP")

    def remember(self, logits: Tensor) -> None:
        """Keep the logits (R, V) of requests that report log-probabilities, before vLLM alters them."""
        self.unaltered = {}
        payloads = [member.payload for member in self.rows.members.values()]
        if not any(payload is not None and payload.is_altered for payload in payloads):
            return
        for group in self.rows.groups():
            if group.member.payload.is_altered:
                self.unaltered[group.row] = logits[[group.row, *group.branches]].float()

    def apply(self, logits: Tensor) -> Tensor:
        """Write guided distributions into the rows of groups, in place."""
        if not self.rows.members:
            return logits
        groups = [group for group in self.rows.groups() if group.row not in self.verified]
        positions = [len(group.member.payload.written()) for group in groups]
        reports = guide(logits, groups, positions, self.models, self.unaltered)
        self.outbox.put(messages(groups, positions, reports))
        return logits

    def verify(
        self,
        logits: Tensor,
        starts: Sequence[int],
        guesses: Sequence[Sequence[int]],
        greedy: Callable[[Tensor], Tensor],
    ) -> dict[int, list[int]]:
        """The tokens of groups with guesses: the guesses that were right, and the token after them.

        Args:
            logits: of the newest token and the guesses of each request, (T, V); changed in place.
            starts: the first position of each request in these.
            guesses: of each request.
            greedy: the most likely tokens, (R, V) → (R,).

        Returns:
            Tokens by the row of the request, those of branch requests included.
        """
        going = [group for group in self.rows.groups() if guesses[group.row]]
        tokens: dict[int, list[int]] = {}
        written: dict[int, Tokens] = {}
        for group in going:
            drawing = group.member.payload
            tokens |= {row: [] for row in (group.row, *group.branches)}
            # While its guesses are verified, the text of a request includes those that were right.
            written[group.row] = drawing.written
            drawing.written = _extended(drawing.written, tokens[group.row])
        drawings = {group.row: group.member.payload for group in going}
        depth = 0
        while going:
            drawn = self._draw(logits, going, starts, depth, greedy)
            later = []
            for group, token in zip(going, drawn, strict=True):
                rows = (group.row, *group.branches)
                for row in rows:
                    tokens[row].append(token)
                is_guess = all(guesses[row][depth : depth + 1] == [token] for row in rows)
                if is_guess and token not in group.member.payload.ends:
                    later.append(group)
            going = later
            depth += 1
        for row, drawing in drawings.items():
            drawing.written = written[row]
        return tokens

    def _draw(
        self,
        logits: Tensor,
        groups: Sequence[GroupRows],
        starts: Sequence[int],
        depth: int,
        greedy: Callable[[Tensor], Tensor],
    ) -> list[int]:
        """The tokens of groups after ``depth`` guesses."""
        here = []
        for group in groups:
            branches = tuple(starts[row] + depth for row in group.branches)
            here.append(GroupRows(starts[group.row] + depth, branches, group.member))
        positions = [len(group.member.payload.written()) for group in groups]
        reports = guide(logits, here, positions)
        self.outbox.put(messages(here, positions, reports))
        drawn: list[int] = greedy(logits[[group.row for group in here]]).tolist()
        return drawn

    def _member(self, params: Any, prompt: list[int] | None, written: list[int]) -> Member[GuidedRow | None] | None:
        # The list is vLLM's own and grows with the text.
        return member_of(params, lambda: list(prompt or ()), lambda: written, self.resources)


@dataclass(frozen=True)
class EngineResources:
    """What reweights or rules out tokens of one engine's requests.

    Args:
        reweighting: of an engine that was started with a classifier; None without one.
        constraints: makes those of requests; None if the engine has no tokenizer.
        populations: of requests whose texts are resampled together.
    """

    reweighting: Reweighting | None = None
    constraints: EngineConstraints | None = None
    populations: Populations = field(default_factory=lambda: Populations(None, LEAST_KEPT))

    @classmethod
    def of(cls, config: Any) -> EngineResources:
        """Those of vLLM's ``VllmConfig``; the classifier is loaded, and the tokenizer only when it is needed."""
        model = getattr(config, "model_config", None)
        if model is None or getattr(model, "skip_tokenizer_init", False):
            return cls()

        def tokenizer() -> Any:
            from vllm.tokenizers import cached_tokenizer_from_config

            return cached_tokenizer_from_config(model)

        size = model.get_vocab_size()
        classifier = classifier_of(config)
        reweighting = None if classifier is None else Reweighting(classifier, tokenizer, size)
        constraints = EngineConstraints(constraints_of(config), tokenizer, size, critics_of(config))
        constraints.load()
        places = getattr(getattr(config, "scheduler_config", None), "max_num_seqs", LEAST_KEPT)
        return cls(reweighting, constraints, Populations(constraints, max(LEAST_KEPT, places)))


def member_of(
    params: Any, prompt: Tokens, written: Tokens, resources: EngineResources
) -> Member[GuidedRow | None] | None:
    """The member that sampling parameters describe; None for those of a plain request.

    Args:
        params: vLLM's ``SamplingParams``; None in pooling models.
        prompt: returns the token ids of the prompt.
        written: returns the token ids written so far.
        resources: of the engine.
    """
    described = (params.extra_args or {}).get(OURS) if params is not None else None
    if not isinstance(described, dict) or "group" not in described:
        return None
    if described["place"] != MAIN:
        return Member(described["group"], described["place"], None)
    n_written = described.get("n_written", 0)
    if n_written:
        # The request was made when its text had begun, so its prompt ends with the first part of the text.
        prompt, written = _split(prompt, written, n_written)
    reweighting = resources.reweighting
    request = Request.from_dict(described["request"], None if reweighting is None else reweighting.classifier)
    reweighted = constrained = particle = None
    if request.caif and reweighting is not None:
        reweighted = reweighting.row(request.caif, request.horizon)
    if request.awrs is not None:
        assert resources.constraints is not None, "requests with a constraint are refused if there is no tokenizer"
        constrained = resources.constraints.row(request.awrs, described["ends"], request.limit)
    if request.population is not None:
        name, number = described["particle"]
        particle = Particle(name, number, tuple(described["ends"]), resources.populations)
    ends = frozenset(described.get("ends", ()))
    measures = described["measures"]
    is_altered = request.draw.logprobs is not None and any(getattr(params, name, None) for name in ALTERING)
    payload = GuidedRow(
        request, prompt, written, measures, reweighted, constrained, particle, n_written, ends, is_altered
    )
    return Member(described["group"], MAIN, payload)


def _extended(written: Tokens, more: list[int]) -> Tokens:
    return lambda: [*written(), *more]


def _split(prompt: Tokens, written: Tokens, n_written: int) -> tuple[Tokens, Tokens]:
    """Prompt and text, if the last ``n_written`` tokens of the prompt belong to the text."""
    return lambda: prompt()[:-n_written], lambda: prompt()[-n_written:] + written()
