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

from textguide.guidance import CFG, Step
from textguide.guidance.algebra import broken, extrapolate, kl_divergence, log_softmax
from textguide.guidance.base import SELF

from .channel import Messages
from .constraints import ConstrainedRow
from .groups import Standing
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

    @property
    def is_cfg(self) -> bool:
        """Whether its branches are combined as classifier-free guidance combines them."""
        return type(self.request.guidance) is CFG

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
    steps = [Step.at(at, one.request.horizon) for one, at in zip(drawings, positions, strict=True)]
    for one, group, drawing, at in zip(seen, groups, drawings, positions, strict=True):
        one.guided = len(group.branches) == len(drawing.request.prompts) and drawing.request.acts(at)
    acting = [n for n, one in enumerate(seen) if one.guided]
    # Where the most likely token is all that is wanted, normalisers change nothing.
    simple = [n for n in acting if drawings[n].is_cfg and drawings[n].is_plain and not drawings[n].measures]
    done = set(simple if _guide_unnormalised(logits, groups, steps, simple) else [])
    rest = [n for n in acting if n not in done]
    scores = _guide_by_scale(logits, groups, steps, [n for n in rest if drawings[n].is_cfg], seen)
    for n in rest:
        if not drawings[n].is_cfg:
            scores[n] = _combined(logits, groups[n], steps[n], models or {}, seen[n])
    drawn = _draw_together(logits, groups, positions, scores, seen)
    for n, (row, branches, _) in enumerate(groups):
        if n in done:
            continue
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


def _combined(logits: Tensor, group: Standing, step: Step, models: Mapping[str, Tensor], seen: Seen) -> Tensor:
    """The guided scores (V,) of one group, by whatever rule, as ``textguide.engine.loop`` computes them."""
    drawing: Drawing = group.member.payload
    guidance = drawing.request.guidance
    assert guidance is not None
    rows = (group.row, *group.branches)
    cond = logits[group.row].float()
    others = [
        (logits if name == SELF else models[name])[rows[place]].float() for place, name in drawing.request.readings
    ]
    logp = log_softmax(torch.stack([cond, *others]))[:, None]
    guided = guidance.combine(logp, step)
    if bool(broken(guided)):
        seen.broken = True
        return cond
    if drawing.measures:
        normal = log_softmax(guided)
        seen.kl = float(kl_divergence(normal, logp[0]))
        seen.changed = bool(normal.argmax() != logp[0].argmax())
    # Moved back to where the conditional logits lie, for penalties.
    return _kept(drawing, guided[0], seen) + cond.logsumexp(-1)


def _kept(drawing: Drawing, guided: Tensor, seen: Seen) -> Tensor:
    """What goes on of guided scores (V,): normalised, and weighed, where texts are weighed by their normalisers."""
    if not drawing.request.weighs:
        return guided
    normaliser = guided.double().logsumexp(-1)
    seen.log_weight = float(normaliser)
    return guided - normaliser.to(guided.dtype)


def _rows(logits: Tensor, groups: Groups, chosen: Sequence[int]) -> tuple[Tensor, ...]:
    """Rows of main requests and of their single branch requests, for indexing."""
    both = torch.tensor([(groups[n].row, groups[n].branches[0]) for n in chosen], device=logits.device)
    return both[:, 0], both[:, 1]


def _scales(logits: Tensor, groups: Groups, steps: Sequence[Step], chosen: Sequence[int]) -> Tensor:
    scales = [[float(groups[n].member.payload.request.guidance.scale_at(steps[n]))] for n in chosen]
    return torch.tensor(scales, device=logits.device)


def _guide_unnormalised(logits: Tensor, groups: Groups, steps: Sequence[Step], chosen: Sequence[int]) -> bool:
    """Combine logits as they are, in place; False, and nothing done, where one of them is −inf or not a number."""
    if not chosen:
        return True
    rows, branches = _rows(logits, groups, chosen)
    scale = _scales(logits, groups, steps, chosen)
    mixed = torch.lerp(logits[branches].float(), logits[rows].float(), scale)
    if not bool(mixed.sum().isfinite()):
        return False
    logits[rows] = mixed.to(logits.dtype)
    logits[branches] = mixed.to(logits.dtype)
    return True


def _guide_by_scale(
    logits: Tensor, groups: Groups, steps: Sequence[Step], chosen: Sequence[int], seen: Sequence[Seen]
) -> dict[int, Tensor]:
    """The guided scores (V,) of each of ``chosen`` under classifier-free guidance, all at once."""
    if not chosen:
        return {}
    rows, branches = _rows(logits, groups, chosen)
    cond = logits[rows].float()
    logp = log_softmax(torch.stack([cond, logits[branches].float()]))
    guided = extrapolate(logp[0], logp[1], _scales(logits, groups, steps, chosen))
    normal = log_softmax(guided)
    if any(groups[n].member.payload.measures for n in chosen):
        kls = kl_divergence(normal, logp[0]).tolist()
        changed = (normal.argmax(-1) != logp[0].argmax(-1)).tolist()
        for n, kl, moved in zip(chosen, kls, changed, strict=True):
            seen[n].kl, seen[n].changed = kl, moved
    scores = {}
    for k, n in enumerate(chosen):
        drawing: Drawing = groups[n].member.payload
        assert drawing.request.guidance is not None
        kept = normal[k] if drawing.request.guidance.renormalize else _kept(drawing, guided[k], seen[n])
        # Moved back to where the conditional logits lie, for penalties.
        scores[n] = kept + cond[k].logsumexp(-1)
    return scores


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
