"""Likelihoods under masked diffusion: a Monte Carlo bound, with its standard error and with guidance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..guidance import Guidance, split
from ..guidance.experimental.time_step import Noisier
from ..support.showing import Block, Line, Shown, figure, table
from .branches import Row, denoisers_of, texts_of
from .candidates import Candidates
from .canvas import Canvas, lay_out
from .denoisers import Denoiser, denoiser
from .generation import canonical
from .guiding import Guide, candidates_of, checked_guidance, remasked_by
from .sampling import whole_number


@dataclass(frozen=True)
class DiffusionScore(Shown):
    """Log-likelihoods of targets behind prompts.

    Attributes:
        log_likelihood: estimate of the evidence bound on ``log p(target | prompt)`` in nats, float64 (N,).
        standard_error: of each estimate over the Monte Carlo draws, (N,); NaN with a single draw.
        tokens: number of target tokens, (N,).
        draws: Monte Carlo draws a target.
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
    *,
    guidance: Any = None,
    models: Mapping[str, Any] | None = None,
    draws: int = 128,
    batch_size: int = 32,
    seed: int = 0,
) -> DiffusionScore:
    """A lower bound on ``log p(target | prompt)``, by Monte Carlo over what is masked.

    For a target of ``n`` tokens, ``k`` of them masked at random and ``k`` uniform on 1…n, the mean over draws of
    ``n/k · Σ log p(masked token | the rest)`` estimates the bound, which equals the mean over all orders of the
    log-probability of writing the target in that order. ``k`` is stratified over the draws: every
    number comes up equally often, as far as ``draws`` allows. The distribution is normalised, with guidance as without.

    Args:
        prompts: as for :func:`generate`; one, or one a target.
        targets: a text or token ids, or a list of these.
        guidance: as for :func:`generate`. ``ACFG(one_pass=True)`` is refused, and ``every`` of
            a classifier above 1: draws have no step before them.
        models: as for :func:`generate`.
        draws: Monte Carlo draws a target; 128 in the literature. With ``draws`` a multiple of n the strata are even.
        batch_size: rows read at once.
        seed: of the masks.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.
    """
    made = denoiser(model, tokenizer)
    wanted = checked_guidance(guidance)
    branching = split(wanted).branching
    edit = remasked_by(branching)
    if getattr(edit, "one_pass", False):
        raise ValueError(
            "one_pass=True ranks positions by the step before, and a likelihood has no steps; leave it off"
        )
    for every in (getattr(part, "every", 1) for part in split(wanted).reweighting):
        if every > 1:
            raise ValueError(f"every={every} counts steps, and a likelihood has none; leave it 1")
    if isinstance(edit, Noisier) and made.time is None:
        raise ValueError(
            "tsg masks positions at random for a denoiser that reads no time, and a likelihood has to be the same twice"
        )
    texts = getattr(split(wanted).canvas, "samples", None)
    if texts:
        raise ValueError(
            f"samples={texts} draws texts, and a likelihood has to be the same twice; give samples=None, which asks "
            "about every text"
        )
    draws, batch_size = whole_number("draws", draws), whole_number("batch_size", batch_size)
    ends = [made.encode(target) for target in canonical(targets, "targets")]
    given = canonical(prompts, "prompts")
    given = given * len(ends) if len(given) == 1 else given
    if len(given) != len(ends):
        raise ValueError(f"prompts has {len(given)} rows and targets {len(ends)}; give one prompt a target, or one")
    if not all(ends):
        raise ValueError(f"targets[{next(i for i, end in enumerate(ends) if not end)}] is empty; leave it out")
    rows: list[Row] = [[*made.encode(prompt), *[None] * len(end)] for prompt, end in zip(given, ends, strict=True)]
    others = [] if edit is not None else texts_of(made, branching, rows, given)
    denoisers, candidates = denoisers_of(made, branching, models), candidates_of(made, wanted)
    sums = torch.zeros(len(ends), dtype=torch.float64)
    squares = torch.zeros_like(sums)
    for index, value in _values(made, wanted, rows, ends, others, denoisers, candidates, draws, batch_size, seed):
        sums[index] += value
        squares[index] += value**2
    mean = sums / draws
    spread = (
        (squares / draws - mean**2).clamp(min=0) * draws / (draws - 1) if draws > 1 else torch.full_like(mean, math.nan)
    )
    tokens = torch.tensor([len(end) for end in ends])
    return DiffusionScore(mean, (spread / draws).sqrt(), tokens, draws)


def masked_counts(tokens: int, draws: int, generator: torch.Generator) -> list[int]:
    """How many tokens each draw masks: uniform on 1…tokens, one draw in each of ``draws`` equal strata."""
    place = (torch.arange(draws) + torch.rand(1, generator=generator, dtype=torch.float64)) / draws
    return [min(tokens, 1 + int(p * tokens)) for p in place]


def _values(
    model: Denoiser, guidance: Guidance | None, rows: Sequence[Row], targets: Sequence[list[int]],
    others: Sequence[Sequence[Row]], denoisers: Mapping[str, Denoiser],
    candidates: Candidates | None, draws: int, batch_size: int, seed: int,
) -> Iterator[tuple[int, float]]:  # fmt: skip
    jobs = []
    for index, target in enumerate(targets):
        generator = torch.Generator().manual_seed(seed)  # a target's masks do not depend on what is scored beside it
        for count in masked_counts(len(target), draws, generator):
            jobs.append((index, torch.randperm(len(target), generator=generator)[:count].tolist()))
    jobs.sort(key=lambda job: len(rows[job[0]]))
    for start in range(0, len(jobs), batch_size):
        part = jobs[start : start + batch_size]
        chosen = [index for index, _ in part]
        values = masked_log_likelihoods(
            model, guidance, [rows[i] for i in chosen], [targets[i] for i in chosen], [masks for _, masks in part],
            [[branch[i] for i in chosen] for branch in others], denoisers, candidates,
        )  # fmt: skip
        yield from zip(chosen, values, strict=True)


def masked_log_likelihoods(
    model: Denoiser, guidance: Guidance | None, rows: Sequence[Row], targets: Sequence[Sequence[int]],
    masks: Sequence[Sequence[int]], others: Sequence[Sequence[Row]] | None = None,
    models: Mapping[str, Any] | None = None, candidates: Candidates | None = None,
) -> list[float]:  # fmt: skip
    """``n/k · Σ log p`` of the masked tokens of each target, given the others.

    Args:
        rows: prompts, each with a None for every token of its target.
        masks: indices into each target of the tokens to mask.
        others: what each extra branch reads; None: what follows from the rows.
        models: further denoisers by name.
        candidates: applies the token reweightings of the guidance; None: made from it.
    """
    canvas: Canvas = lay_out(model, rows, 1 << 20, "its target")
    truth = canvas.ids.clone()
    truth[canvas.target] = torch.tensor([t for target in targets for t in target], device=truth.device)
    hidden = torch.zeros_like(canvas.target)
    for n, (target, mask) in enumerate(zip(targets, masks, strict=True)):
        places = canvas.target[n].nonzero()[:, 0]
        assert len(places) == len(target)
        hidden[n, places[list(mask)]] = True
    guide = Guide(model, guidance, canvas, others, models, candidates=candidates)
    canvas.ids = truth.masked_fill(hidden, model.mask_id)
    distributions = guide.distributions(canvas, torch.arange(len(rows), device=truth.device), hidden)
    values = distributions.guided.gather(-1, truth[hidden][:, None])[:, 0].double()
    sums = [float(part.sum()) for part in values.split(hidden.sum(-1).tolist())]
    return [s * len(t) / len(m) for s, t, m in zip(sums, targets, masks, strict=True)]
