"""The guided distribution of a group's rows and the token that is drawn from it, whichever model runner asks.

Knows no vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from textguide.guidance import Step
from textguide.guidance.algebra import kl_divergence, log_softmax
from textguide.guidance.base import SELF
from textguide.step.guided_step import StepOutcome, guided_groups

from .batch_rows import Standing
from .channel import Messages
from .constraints import ConstrainedRow
from .particles import Seat, Turn
from .requests import Draw, Request
from .reweighting import ReweightedRow


class Noise:
    """A request's own random numbers: a generator whose state before each position can be had again.

    One draw a token, so the tokens depend on the seed and the distributions alone, and are those that
    ``textguide.generate(model, tokenizer, prompt, seed=seed)`` draws for a single prompt: not on the batch, on
    preemption, or on a token that was thrown away and drawn again.
    """

    def __init__(self, seed: int, device: Any = "cpu") -> None:
        self.seed = seed
        self.generator = torch.Generator(device)
        self.position = -1
        self._before: Tensor | None = None
        self._start()

    def draw(self, probs: Tensor, position: int) -> int:
        """The token at ``position`` from probabilities (V,)."""
        return int(torch.multinomial(probs[None], 1, generator=self.before(position, probs)))

    def before(self, position: int, like: Tensor) -> torch.Generator:
        """The generator as it was in front of the draw at ``position``, from a distribution of the
        shape of ``like`` (V,)."""
        if position == self.position:
            assert self._before is not None
            self.generator.set_state(self._before)
        elif position != self.position + 1:
            self._start()
            for _ in range(position):
                torch.multinomial(torch.ones_like(like)[None], 1, generator=self.generator)
        self.position, self._before = position, self.generator.get_state()
        return self.generator

    def _start(self) -> None:
        # PyTorch takes seeds of 64 bits and reads negative ones as their complement.
        self.generator.manual_seed(self.seed)
        self.position, self._before = -1, None


@dataclass
class Seen:
    """What happened at one position of one group.

    Args:
        kl: KL(guided‖unguided) in nats; 0 where the row was not guided.
        changed: whether guidance changed the most likely token.
        guided: whether all its rows were there and the branches count.
        log_weight: the log of what normalising the guidance divided by, where texts are weighed by it; else None.
        broken: whether what the guidance gave is no distribution.
        reweighted: whether a classifier reweighted the candidates.
        drawn: how a constraint changed the draw, the fields of :class:`~.constraints.Drawn`; None without one.
        token: the token, None where the engine takes the most likely one.
        ids: token ids of the reported log-probabilities, the chosen one first; None where none are asked for.
        logprobs: their log-probabilities under the guided distribution.
        rank: rank of the chosen token, from 1.
        turn: what became of the population in which the row is a particle; None for other rows, and where not all of it
            was there.
    """

    kl: float = 0.0
    changed: bool = False
    guided: bool = False
    log_weight: float | None = None
    broken: bool = False
    reweighted: bool = False
    drawn: dict[str, Any] | None = None
    token: int | None = None
    ids: list[int] | None = None
    logprobs: list[float] | None = None
    rank: int = 0
    turn: Turn | None = None


@dataclass
class Drawing:
    """One guided request in a worker.

    Args:
        request: what is asked for.
        prompt: gives the token ids of its prompt.
        written: gives the token ids written so far.
        measures: whether anyone reads the KL (it costs a synchronisation on a device).
        reweighting: lets a classifier reweight the candidates.
        constraint: the one under which tokens are drawn.
        seat: the particle that it is; None where a text is drawn by itself.
        began: how many tokens of the text were written when the engine's request was made.
        ends: tokens that end its text.
    """

    request: Request
    prompt: Callable[[], list[int]]
    written: Callable[[], list[int]]
    measures: bool = False
    reweighting: ReweightedRow | None = None
    constraint: ConstrainedRow | None = None
    seat: Seat | None = None
    began: int = 0
    ends: frozenset[int] = frozenset()
    noise: Noise | None = field(default=None, repr=False)
    is_plain: bool = field(init=False)

    def __post_init__(self) -> None:
        # Whether `choose` would return the scores as they are, and report nothing.
        self.is_plain = (
            self.reweighting is None
            and self.constraint is None
            and self.seat is None
            and self.request.draw == Draw(seed=self.request.draw.seed)
        )

    def choose(self, scores: Tensor, cond: Tensor, position: int, seen: Seen) -> Tensor:
        """What vLLM's greedy sampler is to see, (V,), from the guided scores (V,) at ``position``; ``cond`` (V,) are
        those of the main request alone."""
        scores, out = self.prepare(scores, cond, seen)
        draw = self.request.draw
        if draw.temperature > 0:
            seen.token = self._draw(self.warp(out), position, seen)
        return self.settle(scores, cond, out, seen)

    def prepare(self, scores: Tensor, cond: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """Scores (V,) with the candidates reweighted, and (1, V) with penalties too."""
        if self.reweighting is not None:
            changed = self.reweighting(log_softmax(scores[None]), self.prompt, self.written())[0]
            scores = changed + cond.logsumexp(-1)
            seen.reweighted = True
            if self.measures:
                plain = log_softmax(cond)
                seen.kl = float(kl_divergence(changed, plain))
                seen.changed = bool(changed.argmax() != plain.argmax())
        return scores, self._penalise(scores[None])

    def settle(self, scores: Tensor, cond: Tensor, out: Tensor, seen: Seen) -> Tensor:
        """What the sampler is to see, (V,), from what :meth:`prepare` gave and the token that was drawn; and the
        log-probabilities that are asked for."""
        request, draw = self.request, self.request.draw
        keeps = seen.guided and request.guidance is not None and not (request.guidance.renormalize or request.weighs)
        if seen.token is not None:
            out = torch.full_like(out, -torch.inf)
            out[0, seen.token] = 0.0
        if draw.logprobs is not None:
            chosen = int(out.argmax()) if seen.token is None else seen.token
            logp = scores - cond.logsumexp(-1) if keeps and not seen.reweighted else log_softmax(scores)
            top = logp.topk(draw.logprobs)
            seen.ids = [chosen, *top.indices.tolist()]
            seen.logprobs = [float(logp[chosen]), *top.values.tolist()]
            seen.rank = int((logp > logp[chosen]).sum()) + 1
        return out[0]

    def _penalise(self, scores: Tensor) -> Tensor:
        draw = self.request.draw
        if draw.repetition_penalty != 1.0:
            ids = torch.tensor([self.prompt() + self.written()], device=scores.device)
            scores = RepetitionPenaltyLogitsProcessor(draw.repetition_penalty)(ids, scores)
        if draw.frequency_penalty or draw.presence_penalty:
            written = torch.tensor(self.written(), dtype=torch.long, device=scores.device)
            counts = torch.bincount(written, minlength=scores.shape[-1])
            scores = scores - draw.frequency_penalty * counts - draw.presence_penalty * (counts > 0)
        return scores

    def warp(self, scores: Tensor) -> Tensor:
        """Scores (1, V) whose softmax tokens are drawn from."""
        nothing: Any = None  # these warpers read no ids
        draw = self.request.draw
        scores = scores / draw.temperature
        if draw.top_k:
            scores = TopKLogitsWarper(min(draw.top_k, scores.shape[-1]))(nothing, scores)
        if draw.top_p < 1:
            scores = TopPLogitsWarper(draw.top_p)(nothing, scores)
        if draw.min_p > 0:
            scores = MinPLogitsWarper(draw.min_p)(nothing, scores)
        return scores

    def _draw(self, scores: Tensor, position: int, seen: Seen) -> int:
        if self.noise is None:
            self.noise = Noise(self.request.draw.seed, scores.device)
        if self.constraint is not None:
            drawn = self.constraint(scores, self.written(), self.noise.before(position, scores[0]))
            seen.drawn = vars(drawn)
            return drawn.token
        return self.noise.draw(torch.softmax(scores, dim=-1)[0], position)


Groups = Sequence[Standing]


def guide(
    logits: Tensor, groups: Groups, positions: Sequence[int], models: Mapping[str, Tensor] | None = None
) -> list[Seen]:
    """Write the guided distribution of every group into all of its rows, in place; what was seen at each, in order.

    Args:
        logits: (R, V) float32, with −inf where a token is ruled out. Rows of other requests stay as they are.
        groups: where the groups stand; ``member.payload`` is a :class:`Drawing`.
        positions: how many tokens each main request has written.
        models: the logits of further models for the same rows, by name.
    """
    seen = [Seen() for _ in groups]
    drawings: list[Drawing] = [group.member.payload for group in groups]
    for one, group, drawing, at in zip(seen, groups, drawings, positions, strict=True):
        one.guided = len(group.branches) == len(drawing.request.prompts) and drawing.request.acts(at)
    scores = _combine(logits, groups, positions, models or {}, seen)
    drawn = _draw_together(logits, groups, positions, scores, seen)
    for n, (row, branches, _) in enumerate(groups):
        if drawings[n].seat is not None:
            scores.pop(n, None)
            scores |= {n: drawn[n]} if n in drawn else {}
        elif not drawings[n].is_plain:
            own = logits[row].float()
            scores[n] = drawings[n].choose(scores.get(n, own), own, positions[n], seen[n])
        if n in scores:
            logits[row] = scores[n]
        for branch in branches:
            logits[branch] = logits[row]
    return seen


def _draw_together(
    logits: Tensor, groups: Groups, positions: Sequence[int], scores: Mapping[int, Tensor], seen: Sequence[Seen]
) -> dict[int, Tensor]:
    """What the sampler is to see of particles, (V,) each: those of every population that is there as a whole."""
    populations: dict[str, list[int]] = {}
    for n, group in enumerate(groups):
        seat: Seat | None = group.member.payload.seat
        if seat is not None:
            populations.setdefault(seat.name, []).append(n)
    result: dict[int, Tensor] = {}
    for members in populations.values():
        first: Drawing = groups[members[0]].member.payload
        assert first.seat is not None
        at = positions[members[0]]
        guides = bool(first.request.prompts) and first.request.acts(at)
        if any(positions[n] != at or seen[n].broken or (guides and not seen[n].guided) for n in members):
            continue
        rows: dict[int, tuple[int, Drawing, Tensor, Tensor, Tensor]] = {}
        for n in members:
            drawing: Drawing = groups[n].member.payload
            assert drawing.seat is not None
            own = logits[groups[n].row].float()
            rows[drawing.seat.number] = (n, drawing, own, *drawing.prepare(scores.get(n, own), own, seen[n]))
        turn = first.seat.particles(first.request, logits.device).draw(
            at,
            {number: drawing.written() for number, (_, drawing, *_) in rows.items()},
            {number: drawing.warp(out)[0] for number, (_, drawing, *_, out) in rows.items()},
            {number: seen[n].log_weight or 0.0 for number, (n, *_) in rows.items()},
        )
        if turn is None:
            continue
        for number, (n, drawing, own, weighed, out) in rows.items():
            seen[n].turn, seen[n].token = turn, turn.tokens[number]
            if seen[n].token is not None:
                result[n] = drawing.settle(weighed, own, out, seen[n])
    return result


def _combine(
    logits: Tensor, groups: Groups, positions: Sequence[int], models: Mapping[str, Tensor], seen: Sequence[Seen]
) -> dict[int, Tensor]:
    """The guided scores (V,) of the groups that are guided at this step; what was measured goes into ``seen``."""
    # Requests that need different things of a step: whether only its most likely token is needed, whether what guidance
    # did is measured, and whether a text is weighted by its normalisers.
    needed: dict[tuple[bool, bool, bool], list[int]] = {}
    for n, group in enumerate(groups):
        drawing: Drawing = group.member.payload
        if seen[n].guided:
            greedy = drawing.is_plain and not drawing.measures
            needed.setdefault((greedy, drawing.measures, drawing.request.weighs), []).append(n)
    scores: dict[int, Tensor] = {}
    for (greedy, measures, weighs), chosen in needed.items():
        requests = [groups[n].member.payload.request for n in chosen]
        steps = guided_groups(
            logits[torch.tensor([groups[n].row for n in chosen], device=logits.device)],
            [_branch_logits(logits, groups[n], models) for n in chosen],
            [request.guidance for request in requests],
            [Step.at(positions[n], request.horizon) for n, request in zip(chosen, requests, strict=True)],
            greedy=greedy,
            measure=measures,
            weigh=weighs,
        )
        for members, outcome in steps:
            numbers = [chosen[member] for member in members]
            scores.update(zip(numbers, outcome.scores, strict=True))
            _note(seen, numbers, outcome)
    for n, one in enumerate(seen):
        if one.broken:  # the request ends with an error; until then it has the model's own distribution
            scores[n] = logits[groups[n].row].float()
    return scores


def _branch_logits(logits: Tensor, group: Standing, models: Mapping[str, Tensor]) -> Tensor:
    """The logits of a group's extra branches, (n, V), each of the model that reads it."""
    rows = (group.row, *group.branches)
    readings = group.member.payload.request.readings
    if not readings:
        return logits[:0]
    return torch.stack([(logits if name == SELF else models[name])[rows[place]] for place, name in readings])


def _note(seen: Sequence[Seen], numbers: Sequence[int], outcome: StepOutcome) -> None:
    """What a step of some groups computed besides scores."""
    if outcome.valid is not None:
        for n, valid in zip(numbers, outcome.valid.tolist(), strict=True):
            seen[n].broken = not valid
    if outcome.kl is not None and outcome.changed is not None:
        for n, kl, changed in zip(numbers, outcome.kl.tolist(), outcome.changed.tolist(), strict=True):
            if not seen[n].broken:
                seen[n].kl, seen[n].changed = kl, changed
    if outcome.normaliser is not None:
        for n, normaliser in zip(numbers, outcome.normaliser.tolist(), strict=True):
            seen[n].log_weight = normaliser


def messages(groups: Groups, positions: Sequence[int], seen: Sequence[Seen]) -> Messages:
    """What the scheduler, or a client, wants to know of this step."""
    found: Messages = {}
    for group, at, one in zip(groups, positions, seen, strict=True):
        seat: Seat | None = group.member.payload.seat
        if seat is not None:
            if one.turn is not None or one.broken:
                empty: dict[str, Any] = {"turn": one.turn and vars(one.turn), "broken": False, "rows": {}}
                whole = found.setdefault(seat.name, {}).setdefault(at, empty)
                whole["broken"] |= one.broken
                whole["rows"][seat.number] = {**vars(one), "turn": None}
        elif (
            one.ids is not None
            or one.drawn is not None
            or one.log_weight is not None
            or one.broken
            or ((one.guided or one.reweighted) and group.member.payload.measures)
        ):
            found[group.member.group] = {at: vars(one)}
    return found
