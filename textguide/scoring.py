"""``textguide.score``: log-likelihood of given continuations under guidance, many scales from one pair of passes; and
``textguide.evidence``: how likely it is that a text satisfies a constraint."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from .engine.given_texts import Item, along_texts, as_items, branch_logits, leading
from .engine.results import ScoreResult
from .forward.model_adapter import adapter
from .generation import generate
from .guidance import AWRS, CFG, Guidance, as_guidance, split, with_scale
from .guidance.places import check_place
from .guidance.views import View
from .step.class_log_probs import ClassLogProbs, class_log_probs
from .step.reweighting import Reweighter, reweighter
from .support.checks import check_model_and_tokenizer
from .support.errors import NoParticleLeftWarning
from .support.showing import Block, Line, Shown, Table


def score(
    model: Any,
    tokenizer: Any,
    contexts: Any,
    continuations: Any,
    guidance: Any = None,
    *,
    scales: Sequence[float] | None = None,
    settings: Sequence[Guidance | None] | None = None,
    system: str | None = None,
    batch_size: int = 16,
    horizon: int | None = None,
    models: Mapping[str, Any] | None = None,
    progress: Any = None,
) -> ScoreResult:
    """Log-likelihood and greediness of continuations under guidance.

    Every branch is read once, whatever the number of settings, in batches of like length.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        contexts: a text, token ids or a chat, or one of these per continuation.
        continuations: a text or token ids, or one per context. Texts get no special tokens.
        guidance: a guidance, as for :func:`textguide.generate`; None scores plainly.
        scales: values of ``guidance.scale`` to score under; default: the guidance as it is.
        settings: any guidances with the same branches, in place of ``guidance`` and ``scales``; None scores plainly.
        system: as for :func:`textguide.generate`.
        batch_size: continuations read at once.
        horizon: number of tokens that progress 1 of a schedule stands for (``max_new_tokens`` of a run to compare
            with); default: the length of each continuation.
        models: further models by the name that branches use.
        progress: called with the number of continuations just scored, such as the ``update`` of a progress bar.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.
    """
    check_model_and_tokenizer(model, tokenizer)
    model = adapter(model).base
    chosen = _settings(as_guidance(guidance), scales, settings)
    items = as_items(model, tokenizer, contexts, continuations, system, leading(chosen))
    _check_lengths(model, items)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more")
    log_probs: list[Tensor] = [torch.empty(0)] * len(items)
    greedy = torch.zeros(len(chosen), len(items), dtype=torch.bool)
    scored = score_items(
        model, items, chosen, tokenizer=tokenizer, batch_size=batch_size, horizon=horizon, models=models
    )
    for item, token_log_probs, is_top in scored:
        log_probs[item.number] = token_log_probs
        greedy[:, item.number] = is_top
        if progress is not None:
            progress(1)
    return ScoreResult(
        log_likelihood=torch.stack([row.sum(-1) for row in log_probs], dim=1),
        is_greedy=greedy,
        tokens=torch.tensor([len(item.continuation) for item in items]),
        log_probs=log_probs,
        settings=chosen,
    )


def score_items(
    model: Any,
    items: Sequence[Item],
    settings: Sequence[Guidance | None],
    *,
    tokenizer: Any = None,
    batch_size: int = 16,
    horizon: int | None = None,
    models: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Item, Tensor, Tensor]]:
    """The core of :func:`score`, item by item as batches are finished; the order is not that of ``items``.

    Args:
        settings: guidances that share their branches; None scores plainly.
        tokenizer: needed where a setting asks a classifier.

    Yields:
        The item, the log-probability of its tokens (S, tokens), and whether all of them are the most likely ones (S,).
    """
    groups = [(list(settings), lambda item: item)]
    yield from score_groups(
        model, items, groups, tokenizer=tokenizer, batch_size=batch_size, horizon=horizon, models=models
    )


Group = tuple[list[Guidance | None], Callable[[Item], Item]]
"""Settings that share their branches, and what gives an item the contexts of these."""


def score_groups(
    model: Any,
    items: Sequence[Item],
    groups: Sequence[Group],
    *,
    tokenizer: Any = None,
    batch_size: int = 16,
    horizon: int | None = None,
    models: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Item, Tensor, Tensor]]:
    """:func:`score_items` for settings whose branches differ; the conditional pass is made once for all of them.

    Yields:
        The item, and what :func:`score_items` yields for the settings of all groups, in order.
    """
    model = adapter(model).base
    models = {name: adapter(other).base for name, other in (models or {}).items()}
    settings = [setting for group, _ in groups for setting in group]
    for setting in settings:
        check_place(setting, "score")
    if leading(settings) is not None:
        adapter(model).needs_separate_passes([])  # refuses models that branches cannot share
        if not adapter(model).is_encoder_decoder:
            for item in items:
                lengths = [len(item.read_by(branch)) for branch in range(len(item.negatives) + 1)]
                adapter(model).check_lengths(lengths, len(item.continuation))
    reweightings = [[reweighter(split(one).reweighting, tokenizer, model) for one in group] for group, _ in groups]
    judged = [[class_log_probs(split(one).branching, tokenizer, model) for one in group] for group, _ in groups]
    for batch in _batches(items, batch_size):
        own: dict[View | None, Tensor] = {}
        found = [
            _score_batch(model, [of(item) for item in batch], own, group, weighing, asked, horizon, models)
            for (group, of), weighing, asked in zip(groups, reweightings, judged, strict=True)
        ]
        lengths = [len(item.continuation) for item in batch]
        log_probs = torch.cat([one for one, _ in found]).cpu().split(lengths, dim=1)
        is_top = torch.cat([one for _, one in found]).cpu().split(lengths, dim=1)
        for item, values, tops in zip(batch, log_probs, is_top, strict=True):
            yield item, values, tops.all(-1)


def _settings(
    guidance: Guidance | None, scales: Sequence[float] | None, settings: Sequence[Guidance | None] | None
) -> list[Guidance | None]:
    if settings is not None:
        if guidance is not None or scales is not None:
            raise ValueError("settings= excludes guidance= and scales=; give one or the other")
        given = [as_guidance(setting) for setting in settings]
        found = [split(setting).branching for setting in given]
        guided = [guidance for guidance in found if guidance is not None]
        branching = {guidance.branches for guidance in guided if guidance.branches}
        if len(branching) > 1 or len({guidance.view for guidance in guided}) > 1:
            raise ValueError("settings= must share their branches (same negative prompt); score the others separately")
        if not given:
            raise ValueError("settings is empty; give at least one guidance, or None for plain")
        return given
    if scales is None:
        return [guidance]
    if guidance is None:
        guidance = CFG()
    if not len(scales):
        raise ValueError("scales is empty; give at least one number")
    return [with_scale(guidance, scale) for scale in scales]


def _check_lengths(model: Any, items: list[Item]) -> None:
    limit = adapter(model).max_positions
    if limit is None:
        return
    for item in items:
        contexts = [item.read_by(branch) for branch in range(len(item.negatives) + 1)]
        longest = max(*(len(row) + len(item.continuation) - 1 for row in contexts), *map(len, item.sources), 0)
        if longest > limit:
            raise ValueError(
                f"contexts[{item.number}] with its continuation has {longest} tokens, but the model has {limit} "
                "positions; shorten it"
            )


@dataclass(frozen=True)
class Evidence(Shown):
    """What :func:`evidence` returns.

    Args:
        mean: the estimated probability of each prompt.
        low, high: ends of its 95% interval.
        estimates: those of single populations, (populations, prompts); each has the probability as its expectation.
        ess: mean effective sample size of each prompt's populations.
    """

    mean: list[float]
    low: list[float]
    high: list[float]
    estimates: Tensor
    ess: list[float]

    def _shown(self) -> tuple[str, Sequence[Block]]:
        rows = tuple(
            (str(n + 1), f"{p:.3g}", f"[{low:.3g}, {high:.3g}]", f"{ess:.1f}")
            for n, (p, low, high, ess) in enumerate(zip(self.mean, self.low, self.high, self.ess, strict=True))
        )
        told = f"probability that a text satisfies the constraint, from {len(self.estimates)} populations a prompt"
        return "evidence", [Line(told), Table(("prompt", "probability", "95% interval", "effective sample size"), rows)]


def evidence(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    constraint: Any,
    *,
    particles: int = 16,
    populations: int = 10,
    max_new_tokens: int = 64,
    guidance: Any = None,
    seed: int | None = 0,
    **options: Any,
) -> Evidence:
    """The probability that the model's own text satisfies a constraint, and ends within ``max_new_tokens``.

    It says how much a mask distorts: where it is small, ruling out tokens one by one samples something else than the
    model given the constraint. Each population of AWRS particles gives an unbiased estimate (arXiv 2504.05410); the
    interval is that of their mean, by Student's t, cut at 0 and 1. It is too short where weights are so skewed
    that the populations have missed the likely texts: look at ``ess``, and take more particles.

    Args:
        prompts: a prompt, or a list, as for :func:`textguide.generate`.
        constraint: as for :class:`textguide.AWRS`, or one of these with its settings; ``particles`` is set here.
        particles: of a population.
        populations: independent ones a prompt, 2 or more.
        max_new_tokens: longest text.
        guidance: the probability is that of texts under it; None: of the model as it is.
        seed: of the first population; the others count up. None: not repeatable.
        **options: of :func:`textguide.generate`: ``temperature``, ``models``, ``batch_size``… Without them texts are
            drawn from the whole distribution at temperature 1.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.

    Example:
        >>> textguide.evidence(model, tokenizer, "Is the sky blue? Answer:", Regex(" (Yes|No)[.]"))
    """
    if isinstance(populations, bool) or not isinstance(populations, int) or populations < 2:
        raise ValueError(f"populations={populations!r} must be a whole number of 2 or more, for an interval")
    awrs = constraint if isinstance(constraint, AWRS) else AWRS(constraint)
    if awrs.sampler not in ("awrs", "asap") or awrs.critic is not None:
        raise ValueError(
            f"constraint={awrs!r}: sampler={awrs.sampler!r} gives no unbiased weights, or a critic changes them; use "
            "sampler='awrs' without a critic"
        )
    awrs = replace(awrs, particles=particles)
    given = as_guidance(guidance)
    both = awrs if given is None else [given, awrs]
    whole = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "do_sample": True, **options}
    estimates, sizes = [], []
    for number in range(populations):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoParticleLeftWarning)  # an estimate of 0 is one, too
            out = generate(
                model, tokenizer, prompts, both, max_new_tokens=max_new_tokens,
                seed=None if seed is None else seed + number, **whole,
            )  # fmt: skip
        assert out.log_evidence is not None
        assert out.ess is not None
        estimates.append(out.log_evidence.double().exp())
        sizes.append(out.ess.double())
    found = torch.stack(estimates)
    mean = found.mean(0)
    reach = _t_quantile(populations - 1) * found.std(0) / math.sqrt(populations)
    low, high = (mean - reach).clamp(0, 1), (mean + reach).clamp(0, 1)
    return Evidence(mean.tolist(), low.tolist(), high.tolist(), found, torch.stack(sizes).mean(0).tolist())


def _t_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t, by its series around the normal one; of few degrees of freedom by a table."""
    few = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365)
    if freedom <= len(few):
        return few[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / freedom ** (n + 1) for n, term in enumerate(terms))


def _batches(items: Sequence[Item], batch_size: int) -> Iterator[list[Item]]:
    """Items of like length together, the longest first, so that memory runs out at once or not at all; items of the
    same context side by side, so that it is read once."""
    ordered = sorted(items, key=lambda item: (-len(item.context), item.context, len(item.continuation)))
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


@torch.no_grad()
def _score_batch(
    model: Any,
    batch: list[Item],
    own: dict[View | None, Tensor],
    settings: list[Guidance | None],
    reweightings: list[Reweighter | None],
    judged: list[ClassLogProbs | None],
    horizon: int | None,
    models: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (S, T) of all continuation tokens, and whether each is the most likely one; ``own`` keeps the
    conditional logits (T, V) by what of the model they come from."""
    logits = branch_logits(model, batch, own, settings, models)
    device = logits[0].device
    targets = torch.tensor([token for item in batch for token in item.continuation], device=device)
    log_probs = torch.empty(len(settings), len(targets), device=device)
    is_top = torch.empty(len(settings), len(targets), dtype=torch.bool, device=device)
    for number, part, guided in along_texts(logits, own, batch, targets, settings, reweightings, judged, horizon):
        picked = guided.gather(-1, targets[part, None])
        log_probs[number, part] = picked[:, 0]
        is_top[number, part] = (guided <= picked).all(-1)
    return log_probs, is_top
