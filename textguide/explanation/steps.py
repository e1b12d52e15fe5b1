"""One step of a run as values: the distributions with and without guidance, and the tokens that moved most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..constraints import Vocabulary
from ..engine.loop import StepView
from ..guidance import AWRS, FeynmanKac
from ..smc.constrained import Constrained
from ..smc.lookahead import lookahead_of
from ..smc.starting import constraint_of, vocabulary_of
from .token_texts import token_text
from .values import ExplainedStep, TokenMove

RANKS = ("probability", "ratio")
# A change by less than this share of a token's probability is rounding of the passes, which guidance multiplies.
ROUNDING = 1e-4
# A KL, in nats, that stands for equal distributions.
NOTHING = 1e-6


class Allowed:
    """Which tokens a constraint lets follow, asked beside the run: a text goes on with the tokens that it wrote.

    Args:
        guidance: the constraint of the run.
        model: the model that is decoded.
        config: whose ``eos_token_id`` names the end tokens.
        tokenizer: its tokenizer.
        vocabulary: what each token adds to a text; None: found from the tokenizer.
        horizon: the limit of tokens.
    """

    def __init__(
        self,
        guidance: AWRS | FeynmanKac,
        model: Any,
        config: Any,
        tokenizer: Any,
        vocabulary: Vocabulary | None,
        horizon: int,
    ) -> None:
        awrs = guidance.constrained if isinstance(guidance, FeynmanKac) else guidance
        # A critic weighs texts, and no step of them.
        awrs = replace(awrs, particles=1, critic=None)
        vocabulary = vocabulary if vocabulary is not None else vocabulary_of(model, config, tokenizer)
        constraint = constraint_of(awrs)
        # Of texts that are weighed, what is foreseen moves draws and weights, and no distribution.
        ahead = None if awrs.weighs else lookahead_of(awrs.lookahead, constraint, vocabulary)
        self._rows = Constrained(
            awrs, constraint.start(vocabulary), vocabulary, 1, limit=horizon, lookahead=ahead
        )  # fmt: skip
        self._last = horizon - 1 if awrs.weighs else None
        self._ends = sorted(vocabulary.ends)

    def mask(self, guided: Tensor, index: int) -> Tensor | None:
        """The tokens that may be written at this step, bool (V,); None where the constraint has given the text up.

        Args:
            guided: the guided log-probabilities (V,).
            index: number of the token; at the last one that the limit allows, texts that are weighed have to end.
        """
        scores = guided.cpu()
        masked = self._rows.mask(scores[None])[0]
        if not self._rows.open[0]:
            return None
        allowed = torch.isfinite(masked)
        if index == self._last and self._ends:
            ends = torch.zeros_like(allowed)
            ends[self._ends] = True
            allowed &= ends
        return allowed.to(guided.device) if bool(allowed.any()) else None

    def append(self, token: int) -> None:
        """Write a token."""
        if self._rows.open[0]:
            self._rows.advance(torch.tensor([token]), False)


def explain_step(
    view: StepView,
    tokenizer: Any,
    top: int,
    min_prob: float,
    rank: str,
    allowed: Allowed | None = None,
    scale: float | None = None,
) -> ExplainedStep:
    """What guidance did at the step of ``view``, which has one row.

    Args:
        tokenizer: decodes the tokens.
        top: tokens at each end of the ranking.
        min_prob: tokens that have less in both distributions are left out.
        rank: one of :data:`RANKS`.
        allowed: the constraint of the run, at this step.
        scale: γ at this step.
    """
    plain = view.cond[0].double().log_softmax(-1)
    guided = view.guided[0].double().log_softmax(-1)
    mask = None if allowed is None else allowed.mask(guided, view.index)
    share = None
    if mask is not None:
        share = float(guided.exp()[mask].sum())
        guided = guided.masked_fill(~mask, -math.inf).log_softmax(-1)
    reweighed = view.reweighed is not None and bool(view.reweighed[0])
    p, q = plain.exp(), guided.exp()
    branches = view.extra[:, 0].double().exp() if view.extra is not None else p.new_empty(0, len(p))

    def move(token: int) -> TokenMove:
        return TokenMove(
            text=token_text(tokenizer, token),
            token=token,
            plain=float(p[token]),
            guided=float(q[token]),
            branches=tuple(branches[:, token].tolist()),
            forbidden=mask is not None and not bool(mask[token]),
        )

    kl = float(torch.where(q > 0, q * (guided - plain), 0.0).sum())
    # A rule without extra branches, such as a formula about the conditional branch alone, is seen by what it did.
    is_guided = view.extra is not None or reweighed or mask is not None or kl > NOTHING
    raised, lowered = ranking(plain, guided, top, min_prob, rank) if is_guided else ([], [])
    step = ExplainedStep(
        index=view.index,
        chosen=move(int(view.tokens[0])),
        plain_top=move(int(p.argmax())),
        guided_top=move(int(q.argmax())),
        kl=max(0.0, kl) if is_guided else 0.0,
        moved=float((q - p).clamp(min=0).sum()) if is_guided else 0.0,
        raised=tuple(move(token) for token in raised),
        lowered=tuple(move(token) for token in lowered),
        guided=is_guided,
        allowed=share,
        likeliest=tuple(move(token) for token in likeliest(torch.stack([q, p, *branches]), top)),
        scale=scale,
    )
    if allowed is not None:
        allowed.append(step.chosen.token)
    return step


def likeliest(distributions: Tensor, top: int) -> list[int]:
    """The ``top`` likeliest tokens of each of the distributions (n, V), without repetition, in the order of the first
    distribution."""
    found = distributions.topk(min(top, distributions.shape[-1]), dim=-1)
    tokens = set(found.indices[found.values > 0].tolist())
    return sorted(tokens, key=lambda token: (-float(distributions[0, token]), token))


def ranking(plain: Tensor, guided: Tensor, top: int, min_prob: float, rank: str) -> tuple[Sequence[int], Sequence[int]]:
    """The tokens that guidance raised most and those that it lowered most, each in order.

    ``probability`` ranks by ``guided − plain``: the probability that a token won or lost. The changes above 0 sum to
    the total variation distance of the two distributions, so that the first tokens are those that make the difference.
    ``ratio`` ranks by ``log(guided / plain)``, which shows tokens that became many times as likely, and may stay rare;
    tokens that are ruled out altogether come first among the lowered ones, the likeliest of them at the front.

    Args:
        plain: log-probabilities without guidance, float64 (V,).
        guided: log-probabilities with it, float64 (V,).
        top: how many of each.
        min_prob: tokens that have less in both are left out.
        rank: one of :data:`RANKS`.
    """
    p, q = plain.exp(), guided.exp()
    change = q - p
    moved = (change.abs() > ROUNDING * torch.maximum(p, q)) & (torch.maximum(p, q) >= min_prob)
    ends = []
    for sign in (1.0, -1.0):
        tokens = (moved & (sign * change > 0)).nonzero()[:, 0]
        order = (sign * change[tokens]).argsort(descending=True, stable=True)
        if rank == "ratio":
            ratio = sign * (guided - plain)[tokens][order]
            order = order[ratio.argsort(descending=True, stable=True)]
        ends.append(tokens[order][:top].tolist())
    return ends[0], ends[1]
