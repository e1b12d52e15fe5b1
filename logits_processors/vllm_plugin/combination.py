"""The guided distribution of a group's rows, and the token that is drawn from it, for both model runners of vLLM.

Knows no vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from textguide.guidance import Step
from textguide.guidance.algebra import kl_divergence, log_softmax
from textguide.guidance.base import SELF
from textguide.step.guided_step import StepOutcome, guided_groups

from .batch_rows import GroupRows
from .channel import Messages
from .constraints import ConstrainedRow
from .particles import Particle, Turn
from .requests import Draw, Request
from .reweighting import ReweightedRow


class Noise:
    """The random numbers of one request: a generator that can return to its state before any position.

    A token takes one draw. So the tokens only depend on the seed and the distributions, and are those that
    ``textguide.generate(model, tokenizer, prompt, seed=seed)`` draws for a single prompt. They do not depend on the
    batch, on preemption, or on tokens that were discarded and drawn again.
    """

    def __init__(self, seed: int, device: Any = "cpu") -> None:
        self.seed = seed
        self.generator = torch.Generator(device)
        self.position = -1
        self._before: Tensor | None = None
        self._start()

    def draw(self, probs: Tensor, position: int) -> int:
        """Draw the token at ``position`` from probabilities (V,)."""
        return int(torch.multinomial(probs[None], 1, generator=self.generator_at(position, probs)))

    def generator_at(self, position: int, like: Tensor) -> torch.Generator:
        """The generator in its state before the draw at ``position`` from a distribution shaped as ``like`` (V,)."""
        if position == self.position:
            assert self._before is not None
            self.generator.set_state(self._before)
        elif position != self.position + 1:
            # How far a draw advances the generator depends on the size of the distribution, so draws are repeated.
            self._start()
            for _ in range(position):
                torch.multinomial(torch.ones_like(like)[None], 1, generator=self.generator)
        self.position = position
        self._before = self.generator.get_state()
        return self.generator

    def _start(self) -> None:
        # PyTorch takes seeds of 64 bits and reads negative ones as their complement.
        self.generator.manual_seed(self.seed)
        self.position = -1
        self._before = None


@dataclass
class TokenReport:
    """What happened at one position of one group; its fields travel to the scheduler as a message.

    Args:
        kl: KL(guided‖unguided) in nats; 0 if the row was not guided.
        changed: whether guidance changed the most likely token.
        guided: whether all rows of the group were in the batch and its branches were combined.
        log_weight: log of what normalising the guidance divided by, if texts are weighed by it; else None.
        broken: whether the guidance returned scores that no token can be drawn from.
        reweighted: whether a classifier reweighted the candidates.
        drawn: how a constraint changed the draw, the fields of :class:`~.constraints.Drawn`; None without one.
        token: the token; None if vLLM's sampler takes the most likely one.
        ids: token ids of the reported log-probabilities, the chosen one first; None if none were requested.
        logprobs: their log-probabilities under the guided distribution.
        rank: rank of the chosen token, from 1.
        turn: the step of the population, if the row is a particle and all particles were in the batch; else None.
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


class Unaltered(NamedTuple):
    """The scores of a request without ``logit_bias`` and the like, which vLLM applies to every row before guidance.

    Args:
        scores: guided scores (V,).
        cond: logits (V,) of the main request.
    """

    scores: Tensor
    cond: Tensor

    def reported(self, before: Tensor, after: Tensor, is_reweighted: bool) -> tuple[Tensor, Tensor]:
        """The scores (V,) whose log-probabilities are reported, and the logits of the main request.

        Args:
            before: altered guided scores (V,).
            after: these, with the candidates reweighted.
            is_reweighted: whether a classifier did. It chose its candidates among altered scores, so only what was
                added to them can be taken back.
        """
        if not is_reweighted:
            return self.scores, self.cond
        added = before - self.scores
        return after - torch.where(added.isfinite(), added, 0.0), self.cond


@dataclass
class GuidedRow:
    """One guided request in a worker.

    Args:
        request: the guided request.
        prompt: returns the token ids of its prompt.
        written: returns the token ids written so far.
        measures: whether the KL is reported; it costs a synchronisation on a device.
        reweighting: lets a classifier reweight the candidates.
        constraint: the constraint under which tokens are drawn.
        particle: the particle that it is; None if its text is drawn independently.
        n_written: number of tokens at the end of vLLM's prompt that belong to the text.
        ends: tokens that end its text.
        is_altered: whether vLLM changes its logits before guidance, by ``logit_bias`` and the like, and
            log-probabilities are requested, which are those without the changes.
    """

    request: Request
    prompt: Callable[[], list[int]]
    written: Callable[[], list[int]]
    measures: bool = False
    reweighting: ReweightedRow | None = None
    constraint: ConstrainedRow | None = None
    particle: Particle | None = None
    n_written: int = 0
    ends: frozenset[int] = frozenset()
    is_altered: bool = False
    noise: Noise | None = field(default=None, repr=False)
    is_plain: bool = field(init=False)

    def __post_init__(self) -> None:
        # Whether `choose` would return the scores unchanged, and report nothing. Fixed here, since it is read per step.
        self.is_plain = (
            self.reweighting is None
            and self.constraint is None
            and self.particle is None
            and self.request.draw == Draw(seed=self.request.draw.seed)
        )

    def choose(
        self, scores: Tensor, cond: Tensor, position: int, report: TokenReport, unaltered: Unaltered | None = None
    ) -> Tensor:
        """Draw a token, unless the request is greedy.

        Args:
            scores: guided scores (V,).
            cond: logits (V,) of the main request.
            position: number of tokens written so far.
            report: receives what happened.
            unaltered: the scores without what vLLM changed; None if it changed nothing.

        Returns:
            The logits (V,) for vLLM's sampler, which is greedy.
        """
        before = scores
        scores, out = self.prepare(scores, cond, report)
        if self.request.draw.temperature > 0:
            report.token = self._draw(self.warp(out), position, report)
        reported = (scores, cond) if unaltered is None else unaltered.reported(before, scores, report.reweighted)
        return self.finish(*reported, out, report)

    def prepare(self, scores: Tensor, cond: Tensor, report: TokenReport) -> tuple[Tensor, Tensor]:
        """Scores (V,) with the candidates reweighted, and the same (1, V) with penalties."""
        if self.reweighting is not None:
            changed = self.reweighting(log_softmax(scores[None]), self.prompt, self.written())[0]
            scores = changed + cond.logsumexp(-1)
            report.reweighted = True
            if self.measures:
                plain = log_softmax(cond)
                report.kl = float(kl_divergence(changed, plain))
                report.changed = bool(changed.argmax() != plain.argmax())
        return scores, self._penalise(scores[None])

    def finish(self, scores: Tensor, cond: Tensor, out: Tensor, report: TokenReport) -> Tensor:
        """Report the log-probabilities that were requested, and make the logits for vLLM's sampler.

        Args:
            scores: guided scores (V,), as :meth:`prepare` returned them, without what vLLM changed.
            cond: logits (V,) of the main request, likewise.
            out: scores (1, V) with penalties.
            report: has the token that was drawn, if one was.

        Returns:
            The logits (V,) for vLLM's sampler: if a token was drawn, only that one is possible.
        """
        request = self.request
        if report.token is not None:
            out = torch.full_like(out, -torch.inf)
            out[0, report.token] = 0.0
        count = request.draw.logprobs
        if count is not None:
            chosen = int(out.argmax()) if report.token is None else report.token
            # A guidance without normalisation reports its scores as they are, unless a classifier normalised them.
            is_unnormalised = (
                report.guided
                and request.guidance is not None
                and not (request.guidance.renormalize or request.weighs)
                and not report.reweighted
            )
            logp = scores if is_unnormalised else log_softmax(scores)
            top = logp.topk(count)
            report.ids = [chosen, *top.indices.tolist()]
            report.logprobs = [float(logp[chosen]), *top.values.tolist()]
            report.rank = int((logp > logp[chosen]).sum()) + 1
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
        """Scores (1, V) after temperature, top-k, top-p and min-p; tokens are drawn from their softmax."""
        no_ids: Any = None  # these warpers read no ids
        draw = self.request.draw
        scores = scores / draw.temperature
        if draw.top_k:
            scores = TopKLogitsWarper(min(draw.top_k, scores.shape[-1]))(no_ids, scores)
        if draw.top_p < 1:
            scores = TopPLogitsWarper(draw.top_p)(no_ids, scores)
        if draw.min_p > 0:
            scores = MinPLogitsWarper(draw.min_p)(no_ids, scores)
        return scores

    def _draw(self, scores: Tensor, position: int, report: TokenReport) -> int:
        if self.noise is None:
            self.noise = Noise(self.request.draw.seed, scores.device)
        if self.constraint is not None:
            drawn = self.constraint(scores, self.written(), self.noise.generator_at(position, scores[0]))
            report.drawn = vars(drawn)
            return drawn.token
        return self.noise.draw(torch.softmax(scores, dim=-1)[0], position)


Groups = Sequence[GroupRows]


def guide(
    logits: Tensor,
    groups: Groups,
    positions: Sequence[int],
    models: Mapping[str, Tensor] | None = None,
    unaltered: Mapping[int, Tensor] | None = None,
) -> list[TokenReport]:
    """Write the guided distribution of every group into all of its rows, in place.

    Args:
        logits: (R, V) float32, with −inf for tokens that are ruled out. Rows of other requests do not change.
        groups: the rows of each group; ``member.payload`` is a :class:`GuidedRow`.
        positions: number of tokens that each main request has written.
        models: the logits of further models for the same rows, by name.
        unaltered: by main row, the logits (n, V) of the group's rows before vLLM altered them.

    Returns:
        What happened at each group, in their order.
    """
    reports = [TokenReport() for _ in groups]
    for report, group, position in zip(reports, groups, positions, strict=True):
        request = group.member.payload.request
        report.guided = len(group.branches) == len(request.prompts) and request.acts(position)
    scores = _combine(logits, groups, positions, models or {}, reports)
    originals = _unaltered(unaltered or {}, groups, positions, models or {}, reports)
    drawn = _draw_populations(logits, groups, positions, scores, reports, originals)
    for n, group in enumerate(groups):
        guided_row: GuidedRow = group.member.payload
        if guided_row.particle is not None:
            result = drawn.get(n)
        elif guided_row.is_plain:
            result = scores.get(n)
        else:
            own = logits[group.row].float()
            result = guided_row.choose(scores.get(n, own), own, positions[n], reports[n], originals.get(n))
        if result is not None:
            logits[group.row] = result
        for branch in group.branches:
            logits[branch] = logits[group.row]
    return reports


def _draw_populations(
    logits: Tensor,
    groups: Groups,
    positions: Sequence[int],
    scores: Mapping[int, Tensor],
    reports: Sequence[TokenReport],
    originals: Mapping[int, Unaltered],
) -> dict[int, Tensor]:
    """The logits (V,) for vLLM's sampler of particles, by group, if all particles of their population are there."""
    populations: dict[str, list[int]] = {}
    for n, group in enumerate(groups):
        particle: Particle | None = group.member.payload.particle
        if particle is not None:
            populations.setdefault(particle.population, []).append(n)
    result: dict[int, Tensor] = {}
    for members in populations.values():
        if _can_draw(groups, positions, reports, members):
            result |= _draw_population(logits, groups, positions[members[0]], scores, reports, members, originals)
    return result


def _can_draw(groups: Groups, positions: Sequence[int], reports: Sequence[TokenReport], members: Sequence[int]) -> bool:
    """Whether the particles ``members`` are at the same position, and guided if their guidance acts there."""
    position = positions[members[0]]
    request: Request = groups[members[0]].member.payload.request
    needs_branches = bool(request.prompts) and request.acts(position)
    for n in members:
        if positions[n] != position or reports[n].broken or (needs_branches and not reports[n].guided):
            return False
    return True


class _ParticleScores(NamedTuple):
    """The scores of one particle.

    Args:
        group: the number of its group in the batch.
        scores: guided scores (V,), reweighted, without what vLLM changed.
        cond: logits (V,) of the main request, likewise.
        out: scores (1, V), with penalties.
    """

    group: int
    scores: Tensor
    cond: Tensor
    out: Tensor


def _draw_population(
    logits: Tensor,
    groups: Groups,
    position: int,
    scores: Mapping[int, Tensor],
    reports: Sequence[TokenReport],
    members: Sequence[int],
    originals: Mapping[int, Unaltered],
) -> dict[int, Tensor]:
    """The logits (V,) for vLLM's sampler of one population's particles, by group; empty if a particle is missing."""
    rows: dict[int, GuidedRow] = {}
    by_particle: dict[int, _ParticleScores] = {}
    for n in members:
        row: GuidedRow = groups[n].member.payload
        assert row.particle is not None
        cond = logits[groups[n].row].float()
        number = row.particle.number
        rows[number] = row
        before = scores.get(n, cond)
        prepared, out = row.prepare(before, cond, reports[n])
        reported = (prepared, cond)
        if n in originals:
            reported = originals[n].reported(before, prepared, reports[n].reweighted)
        by_particle[number] = _ParticleScores(n, *reported, out)
    first: GuidedRow = groups[members[0]].member.payload
    assert first.particle is not None
    turn = first.particle.particles(first.request, logits.device).draw(
        position,
        {number: row.written() for number, row in rows.items()},
        {number: rows[number].warp(one.out)[0] for number, one in by_particle.items()},
        {number: reports[one.group].log_weight or 0.0 for number, one in by_particle.items()},
    )
    if turn is None:
        return {}
    result: dict[int, Tensor] = {}
    for number, one in by_particle.items():
        report = reports[one.group]
        report.turn = turn
        report.token = turn.tokens[number]
        if report.token is not None:
            result[one.group] = rows[number].finish(one.scores, one.cond, one.out, report)
    return result


def _combine(
    logits: Tensor,
    groups: Groups,
    positions: Sequence[int],
    models: Mapping[str, Tensor],
    reports: Sequence[TokenReport],
) -> dict[int, Tensor]:
    """The guided scores (V,) of the groups that are guided in this step; measurements are put into ``reports``."""
    # Requests need different results of a step: only its most likely token, the effect of guidance, or the normalisers
    # that weigh a text. Those that need the same are computed together.
    needed: dict[tuple[bool, bool, bool], list[int]] = {}
    for n, group in enumerate(groups):
        row: GuidedRow = group.member.payload
        if reports[n].guided:
            greedy = row.is_plain and not row.measures
            needed.setdefault((greedy, row.measures, row.request.weighs), []).append(n)
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
            _note(reports, numbers, outcome)
    for n, report in enumerate(reports):
        if report.broken:  # the request ends with an error; until then it has the model's own distribution
            scores[n] = logits[groups[n].row].float()
    return scores


def _unaltered(
    logits: Mapping[int, Tensor],
    groups: Groups,
    positions: Sequence[int],
    models: Mapping[str, Tensor],
    reports: Sequence[TokenReport],
) -> dict[int, Unaltered]:
    """The guided scores of those groups whose logits vLLM altered, computed again without that."""
    found: dict[int, Unaltered] = {}
    for n, group in enumerate(groups):
        rows = logits.get(group.row)
        if rows is None or reports[n].broken:
            continue
        alone = GroupRows(0, tuple(range(1, len(rows))), group.member)
        own = {name: values[[group.row, *group.branches]] for name, values in models.items()}
        report = TokenReport(guided=reports[n].guided)
        scores = _combine(rows, [alone], [positions[n]], own, [report])
        found[n] = Unaltered(scores.get(0, rows[0]), rows[0])
    return found


def _branch_logits(logits: Tensor, group: GroupRows, models: Mapping[str, Tensor]) -> Tensor:
    """The logits of a group's extra branches, (n, V), each of the model that reads it."""
    rows = (group.row, *group.branches)
    readings = group.member.payload.request.readings
    if not readings:
        return logits[:0]
    return torch.stack([(logits if name == SELF else models[name])[rows[place]] for place, name in readings])


def _note(reports: Sequence[TokenReport], numbers: Sequence[int], outcome: StepOutcome) -> None:
    """Put what a step measured into the reports of its groups ``numbers``."""
    if outcome.valid is not None:
        for n, valid in zip(numbers, outcome.valid.tolist(), strict=True):
            reports[n].broken = not valid
    if outcome.kl is not None and outcome.changed is not None:
        for n, kl, changed in zip(numbers, outcome.kl.tolist(), outcome.changed.tolist(), strict=True):
            if not reports[n].broken:
                reports[n].kl = kl
                reports[n].changed = changed
    if outcome.normaliser is not None:
        for n, normaliser in zip(numbers, outcome.normaliser.tolist(), strict=True):
            reports[n].log_weight = normaliser


def messages(groups: Groups, positions: Sequence[int], reports: Sequence[TokenReport]) -> Messages:
    """The messages about a step, which the scheduler or a client needs; groups without news have none."""
    result: Messages = {}
    for group, position, report in zip(groups, positions, reports, strict=True):
        row: GuidedRow = group.member.payload
        if row.particle is not None:
            _add_particle(result, row.particle, position, report)
        elif _is_news(report, row):
            result[group.member.group] = {position: vars(report)}
    return result


def _is_news(report: TokenReport, row: GuidedRow) -> bool:
    """Whether the scheduler needs the report."""
    if report.broken or report.ids is not None or report.drawn is not None or report.log_weight is not None:
        return True
    return row.measures and (report.guided or report.reweighted)


def _add_particle(result: Messages, particle: Particle, position: int, report: TokenReport) -> None:
    """Add the report about a particle to the message about its population."""
    if report.turn is None and not report.broken:
        return
    turn = None if report.turn is None else vars(report.turn)
    empty: dict[str, Any] = {"turn": turn, "broken": False, "rows": {}}
    message = result.setdefault(particle.population, {}).setdefault(position, empty)
    message["broken"] |= report.broken
    message["rows"][particle.number] = {**vars(report), "turn": None}
