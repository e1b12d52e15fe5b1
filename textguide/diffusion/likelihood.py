"""Likelihoods under masked diffusion: a Monte Carlo bound with its standard error, also with guidance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..guidance import Guidance, split
from ..guidance.experimental.time_step import Noisier
from ..support.checks import whole_number
from ..support.showing import Block, Line, Shown, figure, table
from .branches import branch_denoisers, branch_texts
from .candidates import CandidateReweighting
from .canvas import Row, lay_out
from .denoisers import Denoiser, denoiser
from .guiding import Guide, canvas_edit, checked_guidance
from .row_formats import check_rows
from .run import canonical_prompts

ONE_BLOCK = 1 << 20


@dataclass(frozen=True)
class DiffusionScore(Shown):
    """Log-likelihoods of targets given prompts.

    Attributes:
        log_likelihood: estimate of the evidence bound on ``log p(target | prompt)`` in nats, float64 (N,).
        standard_error: of each estimate over the Monte Carlo draws, (N,); NaN with a single draw.
        tokens: number of target tokens, (N,).
        draws: Monte Carlo draws per target.
    """

    log_likelihood: Tensor
    standard_error: Tensor
    tokens: Tensor
    draws: int

    def _shown(self) -> tuple[str, Sequence[Block]]:
        values = zip(self.tokens.tolist(), self.log_likelihood.tolist(), self.standard_error.tolist(), strict=True)
        rows = [[str(n + 1), str(t), figure(ll, 2), figure(se, 2)] for n, (t, ll, se) in enumerate(values)]
        blocks: list[Block] = [table(["#", "tokens", "log-likelihood (bound)", "standard error"], rows, "rrrr")]
        blocks.append(Line(f"{self.draws} Monte Carlo draws a target, in nats", quiet=True))
        return f"{len(rows)} target{'s' * (len(rows) != 1)} scored", blocks


def score(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    targets: Any,
    guidance: Any = None,
    *,
    models: Mapping[str, Any] | None = None,
    draws: int = 128,
    batch_size: int = 32,
    seed: int = 0,
) -> DiffusionScore:
    """A lower bound on ``log p(target | prompt)``, by Monte Carlo over what is masked.

    For a target of ``n`` tokens, ``k`` of them masked at random and ``k`` uniform on 1…n, the mean over draws of
    ``n/k · Σ log p(masked token | the rest)`` estimates the bound. The bound equals the mean over all orders of the
    log-probability of writing the target in that order. ``k`` is stratified over the draws: every number occurs equally
    often, as far as ``draws`` allows. The distributions are normalised, with guidance as well as without.

    Args:
        prompts: as for :func:`generate`; one for all targets, or one per target.
        targets: a text or token ids, or a list of these.
        guidance: as for :func:`generate`. ``ACFG(one_pass=True)`` is refused, and so is ``every`` above 1 of a
            classifier: draws have no preceding step.
        models: as for :func:`generate`.
        draws: Monte Carlo draws per target; 128 in the literature. The strata are even if ``draws`` is a multiple of n.
        batch_size: rows per forward pass.
        seed: of the masks.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.
    """
    reader = denoiser(model, tokenizer)
    guidance = checked_guidance(guidance)
    _check_guidance(reader, guidance)
    draws = whole_number("draws", draws, 1)
    batch_size = whole_number("batch_size", batch_size, 1)
    target_ids = [reader.encode(target) for target in canonical_prompts(targets, "targets")]
    given = canonical_prompts(prompts, "prompts")
    given = given * len(target_ids) if len(given) == 1 else given
    if len(given) != len(target_ids):
        raise ValueError(
            f"prompts has {len(given)} rows and targets {len(target_ids)}; give one prompt per target, or one for all"
        )
    for number, ids in enumerate(target_ids):
        if not ids:
            raise ValueError(f"targets[{number}] is empty; leave it out")
        if reader.mask_id in ids:
            raise ValueError(
                f"targets[{number}] has the mask token ({reader.mask_id}), which the model never writes; give the "
                "whole text"
            )
    rows: list[Row] = [
        [*reader.encode(prompt), *[None] * len(ids)] for prompt, ids in zip(given, target_ids, strict=True)
    ]
    check_rows(reader, rows, "prompts")
    parts = split(guidance)
    scorer = _Scorer(
        model=reader,
        guidance=guidance,
        rows=rows,
        targets=target_ids,
        texts=[] if canvas_edit(parts.branching) is not None else branch_texts(reader, parts.branching, rows, given),
        models=branch_denoisers(reader, parts.branching, models),
        candidates=CandidateReweighting(reader, parts.reweighting) if parts.reweighting else None,
    )
    sums = torch.zeros(len(rows), dtype=torch.float64)
    squares = torch.zeros_like(sums)
    for index, value in scorer.values(draws, batch_size, seed):
        sums[index] += value
        squares[index] += value**2
    mean = sums / draws
    if draws > 1:
        variance = (squares / draws - mean**2).clamp(min=0) * draws / (draws - 1)
    else:
        variance = torch.full_like(mean, math.nan)
    tokens = torch.tensor([len(ids) for ids in target_ids])
    return DiffusionScore(mean, (variance / draws).sqrt(), tokens, draws)


def _check_guidance(model: Denoiser, guidance: Guidance | None) -> None:
    """Refuse guidance that depends on preceding steps or on random numbers.

    Raises:
        ValueError: it does; the message names the field.
    """
    parts = split(guidance)
    edit = canvas_edit(parts.branching)
    if getattr(edit, "one_pass", False):
        raise ValueError(
            "one_pass=True ranks positions by the step before, and a likelihood has no steps; leave it off"
        )
    for every in (getattr(part, "every", 1) for part in parts.reweighting):
        if every > 1:
            raise ValueError(f"every={every} counts steps, and a likelihood has none; leave it 1")
    if isinstance(edit, Noisier) and model.time is None:
        raise ValueError(
            "tsg masks positions at random for a denoiser that reads no time, and a likelihood has to be the same twice"
        )
    samples = getattr(parts.canvas, "samples", None)
    if samples:
        raise ValueError(
            f"samples={samples} draws texts, and a likelihood has to be the same twice; give samples=None, which asks "
            "about every text"
        )


@dataclass
class _Scorer:
    """What the Monte Carlo draws of all targets share; the fields are arguments of :func:`masked_log_likelihoods`."""

    model: Denoiser
    guidance: Guidance | None
    rows: list[Row]
    targets: list[list[int]]
    texts: list[list[Row]]
    models: dict[str, Denoiser]
    candidates: CandidateReweighting | None

    def values(self, draws: int, batch_size: int, seed: int) -> Iterator[tuple[int, float]]:
        """Pairs of a target's number and the value of one of its draws."""
        jobs = []
        for index, target in enumerate(self.targets):
            # One generator per target, so that its masks do not depend on which other targets are scored.
            generator = torch.Generator().manual_seed(seed)
            for count in masked_counts(len(target), draws, generator):
                jobs.append((index, torch.randperm(len(target), generator=generator)[:count].tolist()))
        jobs.sort(key=lambda job: len(self.rows[job[0]]))
        for start in range(0, len(jobs), batch_size):
            part = jobs[start : start + batch_size]
            chosen = [index for index, _ in part]
            values = masked_log_likelihoods(
                self.model,
                self.guidance,
                [self.rows[index] for index in chosen],
                [self.targets[index] for index in chosen],
                [masks for _, masks in part],
                [[branch[index] for index in chosen] for branch in self.texts],
                self.models,
                self.candidates,
            )
            yield from zip(chosen, values, strict=True)


def masked_counts(tokens: int, draws: int, generator: torch.Generator) -> list[int]:
    """How many tokens each draw masks: uniform on 1…tokens, one draw in each of ``draws`` equal strata."""
    quantiles = (torch.arange(draws) + torch.rand(1, generator=generator, dtype=torch.float64)) / draws
    return [min(tokens, 1 + int(quantile * tokens)) for quantile in quantiles]


def masked_log_likelihoods(
    model: Denoiser,
    guidance: Guidance | None,
    rows: Sequence[Row],
    targets: Sequence[Sequence[int]],
    masks: Sequence[Sequence[int]],
    texts: Sequence[Sequence[Row]] | None = None,
    models: Mapping[str, Any] | None = None,
    candidates: CandidateReweighting | None = None,
) -> list[float]:
    """``n/k · Σ log p`` of the masked tokens of each target, given the others.

    Args:
        rows: prompts, each with a None for every token of its target.
        masks: indices into each target of the tokens to mask.
        texts: what each extra branch reads; None: what follows from the rows.
        models: further denoisers by name.
        candidates: applies the token reweightings of the guidance; None: made from it.
    """
    canvas = lay_out(model, rows, ONE_BLOCK, "its target")
    truth = canvas.ids.clone()
    truth[canvas.target] = torch.tensor([t for target in targets for t in target], device=truth.device)
    hidden = torch.zeros_like(canvas.target)
    for n, (target, mask) in enumerate(zip(targets, masks, strict=True)):
        places = canvas.target[n].nonzero()[:, 0]
        assert len(places) == len(target)
        hidden[n, places[list(mask)]] = True
    guide = Guide(model, guidance, canvas, texts, models, candidates=candidates)
    canvas.ids = truth.masked_fill(hidden, model.mask_id)
    distributions = guide.distributions(canvas, torch.arange(len(rows), device=truth.device), hidden)
    values = distributions.guided.gather(-1, truth[hidden][:, None])[:, 0].double()
    sums = [float(part.sum()) for part in values.split(hidden.sum(-1).tolist())]
    return [s * len(t) / len(m) for s, t, m in zip(sums, targets, masks, strict=True)]
