"""One guided decoding step: from the logits of all branches to the distribution that the next token is drawn from.

Every loop calls :func:`guided_step`: text generation, scoring, canvases, the logits processors and vLLM. A loop decides
which rows there are and which forward passes run; what a step computes is here and nowhere else.
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
    """What one step computed for ``B`` rows.

    Args:
        scores: what processors, warpers and the draw see, (B, V): guided log-probabilities, shifted to where the
            conditional logits are, so that a scale near 1 gives scores near those logits (penalties depend on that).
            Rows that nothing acted on keep their logits bit for bit.
        log_probs: guided log-probabilities, (B, V); not normalised if the guidance has ``renormalize=False``. None if
            nothing acted.
        cond: log-probabilities of the conditional branch, (B, V); None if nothing acted.
        branches: log-probabilities of all branches in the rows that were guided, (n, B, V), the conditional branch
            first; None if none were combined.
        normaliser: log-sum-exp of the rule's scores, float64 (B,), if the step was asked to ``weigh``; else None.
        kl: KL(guided‖conditional) in nats, (B,); None if it was not measured.
        changed: whether the most likely token changed, bool (B,); None if it was not measured.
        reweighted: rows whose candidates were reweighted, bool (B,); None without ``reweight``.
        valid: rows that a token can be drawn from, bool (B,); None if nothing acted.
        rows: the rows whose branches were combined, bool (B,), if not all were.
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
        """Of the rows ``writing``, bool (B,), those whose branches were combined."""
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
        guidance: the rule that combines them; None: the conditional branch alone.
        step: where in the text the rows are.
        rows: the rows that the guidance acts on, bool (B,), if it does not act on all; ``extra`` and ``step`` then have
            those rows only, and all rows are normalised, whatever ``renormalize`` is.
        allowed: tokens that may be written, bool (B, V), applied after the rule; None: all.
        reweight: reweights the candidates of the combined distribution.
        measure: compute ``kl`` and ``changed``.
        weigh: normalise the rule's scores, and return by what (``normaliser``): the weight of a text that is to follow
            the product of its branches.
        greedy: only the most likely token of ``scores`` is needed. A rule that ignores shifts then combines the logits
            as they are, and nothing else is computed.
        normalised: ``cond`` and ``extra`` are normalised log-probabilities; ``scores`` are then not shifted.
    """
    logits = cond.to(torch.float32, copy=True)  # processors of transformers may write into what they get
    if guidance is None and allowed is None and reweight is None:
        return StepOutcome(logits)

    # The branches, normalised, and the rule.
    branches: Tensor | None = None
    normaliser: Tensor | None = None
    if guidance is None or rows is not None:
        guided = plain = logits if normalised else log_softmax(logits)
    if guidance is not None:
        stacked = _stack(logits if rows is None else logits[rows], extra)
        # A token that one branch forbids keeps its conditional log-probability, which logits do not have.
        as_logits = greedy and guidance.ignores_shifts and bool((stacked > FORBIDDEN).all())
        branches = stacked if normalised or as_logits else log_softmax(stacked)
        combined = combine_branches(guidance, branches, step)
        if as_logits:
            return StepOutcome(combined, valid=combined.amax(-1).isfinite())
        if weigh:
            normaliser = combined.double().logsumexp(-1)
            combined = combined - normaliser[:, None].to(combined.dtype)
        elif guidance.renormalize or rows is not None:
            combined = log_softmax(combined)
        if rows is None:
            guided, plain = combined, branches[0]
        else:
            guided = plain.clone()
            guided[rows] = combined

    # What may be written, and what classifiers and rewards make of it.
    if allowed is not None:
        guided = log_softmax(guided.masked_fill(~allowed, -torch.inf))
        plain = log_softmax(plain.masked_fill(~allowed, -torch.inf))
    is_normal = guidance is None or guidance.renormalize or weigh or rows is not None or allowed is not None
    reweighted: Tensor | None = None
    if reweight is not None:
        changed_log_probs, reweighted = reweight(guided if is_normal else log_softmax(guided))
        guided = torch.where(reweighted[:, None], changed_log_probs, guided)

    outcome = StepOutcome(guided, guided, plain, branches, normaliser, reweighted=reweighted, rows=rows)
    if measure:
        _measure(outcome, guided if is_normal else log_softmax(guided), plain)
    else:
        outcome.valid = guided.amax(-1).isfinite()
    if not normalised:
        outcome.scores = guided + logits.logsumexp(-1, keepdim=True)
    if guidance is None and reweighted is not None and allowed is None:
        outcome.scores = torch.where(reweighted[:, None], outcome.scores, logits)
    return outcome


def guided_log_probs(guidance: BranchGuidance, logp: Tensor, step: Step) -> Tensor:
    """Guided log-probabilities (B, V) from those of the branches (n, B, V): the rule with the −inf rule around it,
    normalised unless the guidance has ``renormalize=False``."""
    extra = logp[1:] if len(logp) > 1 else None
    outcome = guided_step(logp[0], extra, guidance, step, measure=False, normalised=True)
    assert outcome.log_probs is not None
    return outcome.log_probs


def compare(outcome: StepOutcome, logits: Tensor) -> StepOutcome:
    """The same outcome, measured against other logits (B, V) than those of its conditional branch."""
    assert outcome.log_probs is not None
    measured = replace(outcome, cond=log_softmax(logits))
    _measure(measured, log_softmax(outcome.log_probs), log_softmax(logits))
    return measured


def _measure(outcome: StepOutcome, guided: Tensor, plain: Tensor) -> None:
    outcome.kl = kl_divergence(guided, plain)
    outcome.changed = guided.argmax(-1) != plain.argmax(-1)
    outcome.valid = ~outcome.kl.isnan()  # NaN, +inf and rows of −inf end as NaN here, so that no further pass is needed


def combine_branches(guidance: BranchGuidance, logp: Tensor, step: Step) -> Tensor:
    """The scores (B, V) of a rule for log-probabilities ``logp`` (n, B, V), with the −inf rule around it.

    A rule only sees finite numbers. A token that the conditional branch forbids (−inf, or the lowest number of a dtype)
    stays forbidden. A token that only another branch forbids has no ratio to the conditional one and keeps its
    conditional log-probability; if that branch is one of :attr:`~textguide.guidance.BranchGuidance.factors`, the token
    is forbidden instead. The rule works on the remaining tokens as if the vocabulary had no others: a mean over the
    vocabulary is a mean over these.
    """
    possible = logp > FORBIDDEN
    if bool(possible.all()):
        return guidance.combine(logp, step)
    factors = set(guidance.factors(len(logp)))
    deciding = [number for number in range(len(logp)) if number not in factors]
    visible = possible[deciding].all(0)
    if guidance.across_rows:  # the other rows are branches too
        visible = visible.all(0, keepdim=True).expand_as(visible)
    finite = logp.clamp(min=FORBIDDEN / 2)  # what a factor forbids is so unlikely that no score makes up for it
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
    """:func:`guided_step` for rows with a guidance each; rows that share a rule are computed together, and rows whose
    guidance is not active are left alone.

    Args:
        cond: logits of the conditional branch, (B, V).
        extra: logits of each row's extra branches, (n, V).
        guidances: the guidance of each row.
        steps: where in its text each row is.
        **options: of :func:`guided_step`.

    Yields:
        Row numbers, and what was computed for these rows in their order.
    """
    groups: dict[Hashable, list[int]] = {}
    for row, (guidance, step) in enumerate(zip(guidances, steps, strict=True)):
        rule: Hashable = (guidance.rule, len(extra[row])) if guidance.active(step) else None
        groups.setdefault(rule, []).append(row)
    for shared, members in groups.items():
        own = cond if len(members) == len(cond) else cond[torch.tensor(members, device=cond.device)]
        first = guidances[members[0]]
        step = steps[members[0]]
        if shared is None:
            yield members, guided_step(own, None, None, step, **options)
            continue
        if len(members) > 1:
            step = first.step_of_rows([guidances[row] for row in members], [steps[row] for row in members])
            step = step.to(cond.device)
        branches = torch.stack([extra[row] for row in members], dim=1)
        yield members, guided_step(own, branches, first, step, **options)


def refuse_invalid(guidance: Any, rows: Sequence[int]) -> NoReturn:
    """Report the rows whose :attr:`StepOutcome.valid` is False.

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
    """Rows of ``visible``, bool (B, V), that are the same: their numbers, and the tokens that are True in them."""
    if bool((visible == visible[:1]).all()):
        patterns, number = visible[:1], torch.zeros(len(visible), dtype=torch.long, device=visible.device)
    else:
        patterns, number = visible.unique(dim=0, return_inverse=True)
    for pattern, tokens in enumerate(patterns):
        if bool(tokens.any()):
            yield (number == pattern).nonzero()[:, 0], tokens.nonzero()[:, 0]
