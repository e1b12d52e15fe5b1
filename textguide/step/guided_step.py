"""One guided decoding step: from the logits of all branches to the distribution that the next token is drawn from.

All decoding loops call :func:`guided_step`: text generation, scoring, canvases, the logits processors and vLLM. A loop
decides which rows there are and which forward passes run; only this module computes a step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..guidance.algebra import FORBIDDEN, kl_divergence, log_softmax
from ..guidance.base import BranchGuidance, Step

Reweight = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From normalised log-probabilities (B, V) to reweighted ones, and the rows in which something changed, bool (B,)."""


@dataclass
class StepOutcome:
    """The result of one step for ``B`` rows.

    Args:
        scores: the input of processors, warpers and sampling, (B, V): guided log-probabilities, shifted by the
            normaliser of the conditional logits. When the scale is near 1, they are near those logits, which penalties
            depend on. They are not shifted if the guidance has ``renormalize=False``, as in transformers' own guidance.
            If nothing acted on a row, it keeps its logits bit for bit.
        log_probs: guided log-probabilities, (B, V); not normalised if the guidance has ``renormalize=False``. None if
            nothing acted.
        cond: log-probabilities of the conditional branch, (B, V); None if nothing acted.
        branches: log-probabilities of all branches in the rows that were guided, (n, B, V), the conditional branch
            first; None if none were combined.
        normaliser: log-sum-exp of the rule's scores, float64 (B,); None without ``weigh``.
        kl: KL(guided‖conditional) in nats, (B,); None if it was not measured.
        changed: whether the most likely token changed, bool (B,); None if it was not measured.
        reweighted: rows whose candidates were reweighted, bool (B,); None without ``reweight``.
        valid: rows that a token can be drawn from, bool (B,); None if nothing acted.
        rows: the rows whose branches were combined, bool (B,); None if all were.
    """

    scores: Tensor
    log_probs: Tensor | None = None
    cond: Tensor | None = None
    branches: Tensor | None = None
    normaliser: Tensor | None = None
    kl: Tensor | None = None
    changed: Tensor | None = None
    reweighted: Tensor | None = None
    valid: Tensor | None = None
    rows: Tensor | None = None

    def guided_rows(self, writing: Tensor) -> Tensor:
        """The rows among ``writing``, bool (B,), whose branches were combined."""
        if self.branches is None:
            return torch.zeros_like(writing)
        return writing if self.rows is None else writing & self.rows


@torch.no_grad()
def guided_step(
    cond: Tensor,
    extra: Tensor | None,
    guidance: BranchGuidance | None,
    step: Step,
    *,
    rows: Tensor | None = None,
    allowed: Tensor | None = None,
    reweight: Reweight | None = None,
    measure: bool = True,
    weigh: bool = False,
    greedy: bool = False,
    normalised: bool = False,
) -> StepOutcome:
    """Compute one decoding step.

    Args:
        cond: logits of the conditional branch, (B, V), of any float dtype.
        extra: logits of the extra branches in the order of ``guidance.branches``, (n, B, V); None if there are none.
        guidance: the rule that combines them; None: only the conditional branch counts.
        step: the position of the rows in their texts.
        rows: the rows that the guidance acts on, bool (B,), if it does not act on all. ``extra`` and ``step`` then only
            contain those rows, and all rows are normalised, even if ``renormalize`` is off.
        allowed: tokens that may be written, bool (B, V), applied after the rule; None: all tokens.
        reweight: reweights the candidates of the combined distribution.
        measure: compute ``kl`` and ``changed``.
        weigh: also return the ``normaliser`` of the rule's scores. It is the weight that lets a text follow the product
            of its branches.
        greedy: only the most likely token of ``scores`` is needed. If the rule ignores shifts, it then combines the
            logits as they are, and nothing else is computed.
        normalised: whether ``cond`` and ``extra`` are normalised log-probabilities. If they are, ``scores`` are not
            shifted.
    """
    logits = cond.to(torch.float32, copy=True)  # processors of transformers may write into their input
    if guidance is None and allowed is None and reweight is None:
        return StepOutcome(logits)

    if greedy and guidance is not None and guidance.ignores_shifts:
        scores = _greedy_scores(logits, extra, guidance, step)
        if scores is not None:
            return StepOutcome(scores, valid=scores.amax(-1).isfinite())

    # 1. The rule combines the branches.
    combined = _combine(logits, extra, guidance, step, rows, weigh=weigh, normalised=normalised)

    # 2. The constraint, and then classifiers and rewards, change the result.
    if allowed is not None:
        combined = _limit(combined, allowed)
    reweighted: Tensor | None = None
    if reweight is not None:
        changed_log_probs, reweighted = reweight(combined.normal_log_probs())
        combined.guided = torch.where(reweighted[:, None], changed_log_probs, combined.guided)

    # 3. Measure the change, and compute the scores for processors and sampling.
    guided = combined.guided
    outcome = StepOutcome(
        guided, guided, combined.plain, combined.branches, combined.normaliser, reweighted=reweighted, rows=rows
    )
    if measure:
        _measure(outcome, combined.normal_log_probs(), combined.plain)
    else:
        outcome.valid = guided.amax(-1).isfinite()
    if not normalised:
        outcome.scores = combined.shifted(logits)
    if reweighted is not None and guidance is None and allowed is None:
        outcome.scores = torch.where(reweighted[:, None], outcome.scores, logits)
    return outcome


def _greedy_scores(logits: Tensor, extra: Tensor | None, guidance: BranchGuidance, step: Step) -> Tensor | None:
    """Apply the rule to logits instead of log-probabilities.

    None if a branch forbids a token: that token keeps its conditional log-probability, which logits do not provide.
    """
    stacked = _stack(logits, extra)
    if bool((stacked > FORBIDDEN).all()):
        return combine_branches(guidance, stacked, step)
    return None


@dataclass
class _Combined:
    """The branches of a step, combined by the rule.

    Args:
        guided: guided log-probabilities, (B, V).
        plain: those of the conditional branch, (B, V).
        is_normal: whether ``guided`` is normalised.
        branches: those of all branches in the rows that were combined.
        normaliser: the log-sum-exp by which ``guided`` was normalised; None without ``weigh``.
    """

    guided: Tensor
    plain: Tensor
    is_normal: bool = True
    branches: Tensor | None = None
    normaliser: Tensor | None = None

    def normal_log_probs(self) -> Tensor:
        """Guided log-probabilities, normalised."""
        return self.guided if self.is_normal else log_softmax(self.guided)

    def shifted(self, logits: Tensor) -> Tensor:
        """Guided log-probabilities plus the normaliser of ``logits`` (B, V); as they are if they are not normalised."""
        return self.guided + logits.logsumexp(-1, keepdim=True) if self.is_normal else self.guided


def _combine(
    logits: Tensor,
    extra: Tensor | None,
    guidance: BranchGuidance | None,
    step: Step,
    rows: Tensor | None,
    *,
    weigh: bool,
    normalised: bool,
) -> _Combined:
    """Combine the branches of all rows, or of some ``rows``; without a guidance, the conditional branch."""
    if guidance is None:
        log_probs = logits if normalised else log_softmax(logits)
        return _Combined(log_probs, log_probs)
    if rows is not None:
        some = _combine(logits[rows], extra, guidance, step, None, weigh=weigh, normalised=normalised)
        return _among(rows, some, logits if normalised else log_softmax(logits))
    stacked = _stack(logits, extra)
    branches = stacked if normalised else log_softmax(stacked)
    scores = combine_branches(guidance, branches, step)
    if weigh:
        normaliser = scores.double().logsumexp(-1)
        return _Combined(scores - normaliser[:, None].to(scores.dtype), branches[0], True, branches, normaliser)
    if guidance.renormalize:
        scores = log_softmax(scores)
    return _Combined(scores, branches[0], guidance.renormalize, branches)


def _among(rows: Tensor, some: _Combined, log_probs: Tensor) -> _Combined:
    """Insert the combined rows ``some`` into ``log_probs`` (B, V) of all rows; all are normalised."""
    guided = log_probs.clone()
    guided[rows] = some.normal_log_probs()
    return _Combined(guided, log_probs, True, some.branches, some.normaliser)


def _limit(combined: _Combined, allowed: Tensor) -> _Combined:
    """Forbid all tokens except ``allowed``, bool (B, V), and normalise."""
    guided = log_softmax(combined.guided.masked_fill(~allowed, -torch.inf))
    plain = log_softmax(combined.plain.masked_fill(~allowed, -torch.inf))
    return replace(combined, guided=guided, plain=plain, is_normal=True)


def guided_log_probs(guidance: BranchGuidance, logp: Tensor, step: Step) -> Tensor:
    """Guided log-probabilities (B, V) from those of the branches (n, B, V).

    Applies :func:`combine_branches`, and normalises unless the guidance has ``renormalize=False``.
    """
    extra = logp[1:] if len(logp) > 1 else None
    outcome = guided_step(logp[0], extra, guidance, step, measure=False, normalised=True)
    assert outcome.log_probs is not None
    return outcome.log_probs


def compare(outcome: StepOutcome, logits: Tensor) -> StepOutcome:
    """Measure an outcome against ``logits`` (B, V) instead of those of its conditional branch."""
    assert outcome.log_probs is not None
    measured = replace(outcome, cond=log_softmax(logits))
    _measure(measured, log_softmax(outcome.log_probs), log_softmax(logits))
    return measured


def _measure(outcome: StepOutcome, guided: Tensor, plain: Tensor) -> None:
    outcome.kl = kl_divergence(guided, plain)
    outcome.changed = guided.argmax(-1) != plain.argmax(-1)
    outcome.valid = ~outcome.kl.isnan()  # NaN, +inf and rows of −inf end as NaN here, so that no further pass is needed


def combine_branches(guidance: BranchGuidance, logp: Tensor, step: Step) -> Tensor:
    """Apply the rule of ``guidance`` to log-probabilities ``logp`` (n, B, V), which may contain −inf.

    The rule only receives finite numbers. A token that the conditional branch forbids (−inf, or the lowest number of a
    dtype) stays forbidden. A token that only another branch forbids has no ratio to the conditional one and keeps its
    conditional log-probability; if that branch is one of :attr:`~textguide.guidance.BranchGuidance.factors`, the token
    is forbidden instead. The rule works on the remaining tokens as if the vocabulary had no others: a mean over the
    vocabulary is a mean over these.
    """
    possible = logp > FORBIDDEN
    all_possible = bool(possible.all())
    if all_possible or guidance.is_elementwise:
        scores = guidance.combine(logp if all_possible else logp.clamp(min=FORBIDDEN / 2), step)
        return scores if all_possible else torch.where(possible.all(0), scores, logp[0])
    factors = set(guidance.factors(len(logp)))
    deciding = [number for number in range(len(logp)) if number not in factors]
    visible = possible[deciding].all(0)
    if guidance.across_rows:  # the other rows are branches too
        visible = visible.all(0, keepdim=True).expand_as(visible)
    # So low that no other branch makes up for a token that a factor forbids.
    finite = logp.clamp(min=FORBIDDEN / 2)
    scores = logp[0].clone()
    for members, tokens in _same_tokens(visible):
        part = combine_branches(guidance, finite[:, members][..., tokens], step.pick(members))
        scores[members[:, None], tokens[None]] = part.masked_fill(part < FORBIDDEN / 4, -torch.inf)
    return scores


def guided_groups(
    cond: Tensor,
    extra: Sequence[Tensor],
    guidances: Sequence[BranchGuidance],
    steps: Sequence[Step],
    **options: Any,
) -> Iterator[tuple[list[int], StepOutcome]]:
    """:func:`guided_step` for rows with different guidances.

    Rows that share a rule are computed together. If the guidance of a row is not active, the row is not changed.

    Args:
        cond: logits of the conditional branch, (B, V).
        extra: logits of each row's extra branches, (n, V).
        guidances: the guidance of each row.
        steps: the position of each row in its text.
        **options: of :func:`guided_step`.

    Yields:
        Row numbers, and the outcome for these rows in their order.
    """
    groups: dict[Hashable, list[int]] = {}
    for row, (guidance, step) in enumerate(zip(guidances, steps, strict=True)):
        rule: Hashable = (guidance.rule, len(extra[row])) if guidance.active(step) else None
        groups.setdefault(rule, []).append(row)
    for shared, members in groups.items():
        logits = cond if len(members) == len(cond) else cond[torch.tensor(members, device=cond.device)]
        first = guidances[members[0]]
        step = steps[members[0]]
        if shared is None:
            yield members, guided_step(logits, None, None, step, **options)
            continue
        if len(members) > 1:
            step = first.step_of_rows([guidances[row] for row in members], [steps[row] for row in members])
            step = step.to(cond.device)
        branches = torch.stack([extra[row] for row in members], dim=1)
        yield members, guided_step(logits, branches, first, step, **options)


def refuse_invalid(guidance: Any, rows: Sequence[int]) -> NoReturn:
    """Raise an error about the rows whose :attr:`StepOutcome.valid` is False.

    Raises:
        ValueError: always.
    """
    numbers = ", ".join(map(str, rows))
    raise ValueError(
        f"{guidance} gives log-probabilities that are NaN or +inf for row {numbers}; use a smaller scale, or a formula "
        "that divides by nothing that may be 0. If the model alone gives NaN too, load it with dtype float32"
    )


def _stack(cond: Tensor, extra: Tensor | None) -> Tensor:
    return cond[None] if extra is None else torch.cat([cond[None], extra.to(cond.device, torch.float32)])


def _same_tokens(visible: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Group the rows of ``visible``, bool (B, V), that are equal; yield their numbers, and the tokens that are True."""
    if bool((visible == visible[:1]).all()):
        patterns = visible[:1]
        number = torch.zeros(len(visible), dtype=torch.long, device=visible.device)
    else:
        patterns, number = visible.unique(dim=0, return_inverse=True)
    for pattern, tokens in enumerate(patterns):
        if bool(tokens.any()):
            yield (number == pattern).nonzero()[:, 0], tokens.nonzero()[:, 0]
