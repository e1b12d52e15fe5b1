"""One step of a run as values: the tokens whose probabilities guidance changed most."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
# Smaller changes, relative to a token's probability, may be rounding errors of the passes, which guidance amplifies.
ROUNDING = 1e-4
# Distributions with a smaller KL, in nats, are considered equal.
NOTHING = 1e-6


class Allowed:
    """The tokens that a constraint allows after each token of a text, checked separately from the run.

    Args:
        guidance: the constraint of the run.
        model: the model that is decoded.
        config: its ``eos_token_id`` specifies the end tokens.
        tokenizer: the tokenizer of the model.
        vocabulary: what each token adds to a text; None: derived from the tokenizer.
        horizon: the limit of new tokens.
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
        # A critic weights whole texts and does not affect single steps.
        awrs = replace(awrs, particles=1, critic=None)
        vocabulary = vocabulary if vocabulary is not None else vocabulary_of(model, config, tokenizer)
        constraint = constraint_of(awrs)
        vocabulary = constraint.vocabulary(vocabulary)
        # If texts are weighted, lookahead changes draws and weights, but not the distribution of a step.
        ahead = None if awrs.weighs else lookahead_of(awrs.lookahead, constraint, vocabulary)
        session = constraint.start(vocabulary)
        self._rows = Constrained(awrs, session, vocabulary, 1, limit=horizon, lookahead=ahead)
        self._last = horizon - 1 if awrs.weighs else None
        self._ends = sorted(vocabulary.ends)

    def mask(self, guided: Tensor, index: int) -> Tensor | None:
        """The tokens that are allowed at this step, bool (V,); None if the text cannot satisfy the constraint any more.

        Args:
            guided: the guided log-probabilities, (V,).
            index: the number of the token. At the last one before the limit, weighted texts have to end.
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
        """Add a token to the text."""
        if self._rows.open[0]:
            self._rows.advance(torch.tensor([token]), False)


@dataclass(frozen=True)
class Ranking:
    """Which tokens are shown at a step.

    Args:
        top: number of tokens at each end of the ranking.
        min_prob: leave out tokens whose probability is lower than this both with and without guidance.
        rank: one of :data:`RANKS`. ``probability`` ranks by ``guided − plain``, the probability that a token won or
            lost. The changes above 0 sum to the total variation distance of the two distributions, so that the first
            tokens are those that make the difference. ``ratio`` ranks by ``log(guided / plain)``, which shows tokens
            that became many times as likely and may still be rare. Tokens that are ruled out come first among the
            lowered ones, the likeliest of them first.
    """

    top: int = 5
    min_prob: float = 1e-3
    rank: str = RANKS[0]

    def ends(self, plain: Tensor, guided: Tensor) -> tuple[list[int], list[int]]:
        """The tokens that guidance raised most and those that it lowered most, each in order.

        Args:
            plain: log-probabilities without guidance, float64 (V,).
            guided: log-probabilities with it, float64 (V,).
        """
        p = plain.exp()
        q = guided.exp()
        larger = torch.maximum(p, q)
        moved = ((q - p).abs() > ROUNDING * larger) & (larger >= self.min_prob)
        return self._end(1.0, moved, plain, guided), self._end(-1.0, moved, plain, guided)

    def _end(self, sign: float, moved: Tensor, plain: Tensor, guided: Tensor) -> list[int]:
        change = sign * (guided.exp() - plain.exp())
        tokens = (moved & (change > 0)).nonzero()[:, 0]
        order = change[tokens].argsort(descending=True, stable=True)
        if self.rank == "ratio":
            # Sorted by the change before, so that tokens with equal ratios, such as infinite ones, stay in that order.
            ratio = sign * (guided - plain)[tokens][order]
            order = order[ratio.argsort(descending=True, stable=True)]
        return tokens[order][: self.top].tolist()


def explain_step(
    view: StepView,
    tokenizer: Any,
    ranking: Ranking,
    allowed: Allowed | None = None,
    scale: float | None = None,
) -> ExplainedStep:
    """What guidance did at the step of ``view``, which has one row.

    Args:
        tokenizer: decodes the tokens.
        ranking: which tokens are shown.
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
    p = plain.exp()
    q = guided.exp()
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
    reweighted = view.reweighed is not None and bool(view.reweighed[0])
    # A rule without extra branches, such as a formula of the conditional branch, only shows in its effect.
    is_guided = view.extra is not None or reweighted or mask is not None or kl > NOTHING
    raised, lowered = ranking.ends(plain, guided) if is_guided else ([], [])
    step = ExplainedStep(
        index=view.index,
        chosen=move(int(view.tokens[0])),
        plain_top=move(int(p.argmax())),
        guided_top=move(int(q.argmax())),
        kl=max(0.0, kl) if is_guided else 0.0,
        moved=float((q - p).clamp(min=0).sum()) if is_guided else 0.0,
        raised=tuple(map(move, raised)),
        lowered=tuple(map(move, lowered)),
        guided=is_guided,
        allowed=share,
        likeliest=tuple(map(move, likeliest(torch.stack([q, p, *branches]), ranking.top))),
        scale=scale,
    )
    if allowed is not None:
        allowed.append(step.chosen.token)
    return step


def likeliest(distributions: Tensor, top: int) -> list[int]:
    """The ``top`` likeliest tokens of each of the distributions (n, V), each token once, sorted by the first one."""
    values, tokens = distributions.topk(min(top, distributions.shape[-1]), dim=-1)
    distinct = set(tokens[values > 0].tolist())
    return sorted(distinct, key=lambda token: (-float(distributions[0, token]), token))
