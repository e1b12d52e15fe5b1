"""``textguide.score``: the log-likelihood of continuations under guidance, for many scales from the same passes; and
``textguide.evidence``: the probability that a text satisfies a constraint."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from .classifiers.class_log_probs import ClassLogProbs, class_log_probs
from .classifiers.reweighting import Reweighter, reweighter
from .engine.given_texts import Item, along_texts, as_items, branch_logits, leading
from .engine.results import ScoreResult
from .forward.model_adapter import adapter
from .generation import generate
from .guidance import AWRS, CFG, Guidance, as_guidance, parts_of, split, with_scale
from .guidance.places import check_place
from .guidance.views import View
from .support.checks import check_model_and_tokenizer, whole_number
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
    """Compute the log-likelihood of continuations under guidance, and whether greedy decoding would write them.

    Every branch is read once, for any number of settings, in batches of similar lengths.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        contexts: a text, token ids or a chat, or one of these per continuation.
        continuations: a text or token ids, or one per context. Texts get no special tokens.
        guidance: a guidance, as for :func:`textguide.generate`; None scores without guidance.
        scales: values of ``guidance.scale`` to score under; default: only that of ``guidance``.
        settings: a list of guidances with the same branches, instead of ``guidance`` and ``scales``. An entry None
            scores without guidance.
        system: as for :func:`textguide.generate`.
        batch_size: number of continuations read together. Default: 16.
        horizon: number of tokens at which a schedule reaches progress 1: ``max_new_tokens`` of a run to compare with.
            Default: the length of each continuation.
        models: further models, by the names that branches use.
        progress: called with the number of continuations just scored, such as the ``update`` of a progress bar.

    Returns:
        A :class:`ScoreResult` with log-likelihoods in nats, (S, N) for S settings and N continuations, and the
        log-probability of each token.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.

    Example:
        >>> out = textguide.score(model, tokenizer, "2 + 2 =", [" 4", " 5"], CFG(), scales=[1.0, 1.5])
        >>> out.log_likelihood.shape  # doctest: +SKIP
        torch.Size([2, 2])
    """
    check_model_and_tokenizer(model, tokenizer)
    model = adapter(model).base
    batch_size = whole_number("batch_size", batch_size, 1)
    chosen = _settings(as_guidance(guidance), scales, settings)
    items = as_items(model, tokenizer, contexts, continuations, system, leading(chosen))
    _check_lengths(model, items)
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
    """The core of :func:`score`. Yields items when their batch is finished, which is not the order of ``items``.

    Args:
        settings: guidances that share their branches; an entry None scores without guidance.
        tokenizer: needed if a setting uses a classifier.

    Yields:
        The item, the log-probabilities of its tokens (S, tokens), and whether all of them are the most likely ones,
        (S,).
    """
    groups = [(list(settings), lambda item: item)]
    yield from score_groups(
        model, items, groups, tokenizer=tokenizer, batch_size=batch_size, horizon=horizon, models=models
    )


Group = tuple[list[Guidance | None], Callable[[Item], Item]]
"""Settings that share their branches, and a function that gives an item the contexts of these branches."""


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
    """:func:`score_items` for settings with different branches; they share the conditional pass.

    Yields:
        The item, and the values of :func:`score_items` for the settings of all groups, in order.
    """
    model = adapter(model).base
    models = {name: adapter(other).base for name, other in (models or {}).items()}
    settings = list(chain.from_iterable(group for group, _ in groups))
    for setting in settings:
        check_place(setting, "score")
    adapter(model).check_direction()
    if leading(settings) is not None:
        adapter(model).check_state()
    _check_lengths_of_branches(model, items)
    reweightings: list[list[Reweighter | None]] = []
    classifiers: list[list[ClassLogProbs | None]] = []
    for group, _ in groups:
        parts = [split(setting) for setting in group]
        reweightings.append([reweighter(part.reweighting, tokenizer, model) for part in parts])
        classifiers.append([class_log_probs(part.branching, tokenizer, model) for part in parts])
    for batch in _batches(items, batch_size):
        cond_logits: dict[View | None, Tensor] = {}  # shared by the groups
        group_log_probs = []
        group_is_top = []
        for (group, convert), reweighting, classifier in zip(groups, reweightings, classifiers, strict=True):
            converted = [convert(item) for item in batch]
            values, tops = _score_batch(model, converted, cond_logits, group, reweighting, classifier, horizon, models)
            group_log_probs.append(values)
            group_is_top.append(tops)
        lengths = [len(item.continuation) for item in batch]
        log_probs = torch.cat(group_log_probs).cpu().split(lengths, dim=1)
        is_top = torch.cat(group_is_top).cpu().split(lengths, dim=1)
        for item, values, tops in zip(batch, log_probs, is_top, strict=True):
            yield item, values, tops.all(-1)


def _check_lengths_of_branches(model: Any, items: Sequence[Item]) -> None:
    """Refuse texts during which the model changes what it has read; one pass would read all of it as changed."""
    if adapter(model).is_encoder_decoder:
        return
    for item in items:
        lengths = [len(item.read_by(branch)) for branch in range(len(item.negatives) + 1)]
        adapter(model).check_lengths(lengths, len(item.continuation))


def _settings(
    guidance: Guidance | None, scales: Sequence[float] | None, settings: Sequence[Guidance | None] | None
) -> list[Guidance | None]:
    if settings is not None:
        if guidance is not None or scales is not None:
            raise ValueError("settings= excludes guidance= and scales=; pass one or the other")
        return _with_shared_branches([as_guidance(setting) for setting in settings])
    if scales is None:
        return [guidance]
    if guidance is None:
        guidance = CFG()
    if not len(scales):
        raise ValueError("scales is empty; pass at least one number")
    return [with_scale(guidance, scale) for scale in scales]


def _with_shared_branches(settings: list[Guidance | None]) -> list[Guidance | None]:
    """Refuse settings that cannot be computed from the same passes."""
    branching = [split(setting).branching for setting in settings]
    guided = [guidance for guidance in branching if guidance is not None]
    branches = {guidance.branches for guidance in guided if guidance.branches}
    if len(branches) > 1 or len({guidance.view for guidance in guided}) > 1:
        raise ValueError("settings= must share their branches (same negative prompt); score the others separately")
    if not settings:
        raise ValueError("settings is empty; pass at least one guidance, or None for plain decoding")
    return settings


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
    """The result of :func:`evidence`.

    Args:
        mean: the estimated probability for each prompt.
        low, high: bounds of its 95% confidence interval.
        estimates: the estimates of single populations, (populations, prompts), each of which is unbiased.
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
        title = f"probability that a text satisfies the constraint, from {len(self.estimates)} populations per prompt"
        return "evidence", [
            Line(title),
            Table(("prompt", "probability", "95% interval", "effective sample size"), rows),
        ]


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
    """Estimate the probability that a text of the model satisfies a constraint and ends within ``max_new_tokens``.

    It shows how much masking tokens distorts the model: if the probability is small, masking tokens one by one samples
    from a distribution that differs from the model given the constraint. Each population of AWRS particles is an
    unbiased estimate (arXiv 2504.05410). The interval is that of their mean, by Student's t, clipped to [0, 1]. It is
    too narrow if weights are so skewed that the populations miss the likely texts; use more particles if ``ess`` is
    small.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        prompts: a prompt, or a list, as for :func:`textguide.generate`.
        constraint: as for :class:`textguide.AWRS`, or an ``AWRS`` with its settings, whose ``particles`` are ignored.
        particles: number of particles per population. Default: 16.
        populations: number of independent populations per prompt, 2 or more. Default: 10.
        max_new_tokens: the largest number of tokens of a text. Default: 64.
        guidance: the probability is that of texts under this guidance; None: of the model without guidance.
        seed: seed of the first population; the others count up. None: not reproducible.
        **options: options of :func:`textguide.generate`, such as ``temperature``, ``models`` or ``batch_size``. By
            default, texts are drawn from the whole distribution at temperature 1.

    Returns:
        The estimate for each prompt with its interval.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.

    Example:
        >>> textguide.evidence(model, tokenizer, "Is the sky blue? Answer:", Regex(" (Yes|No)[.]"))
    """
    populations = whole_number("populations", populations, 2, "an interval needs two estimates")
    awrs = constraint if isinstance(constraint, AWRS) else AWRS(constraint)
    if awrs.sampler not in ("awrs", "asap") or awrs.critic is not None:
        raise ValueError(
            f"constraint={awrs!r}: sampler={awrs.sampler!r} has no unbiased weights, or a critic changes them; "
            "use sampler='awrs' without a critic"
        )
    awrs = replace(awrs, particles=particles)
    combined = [*parts_of(as_guidance(guidance)), awrs]
    # A model's generation configuration may cut the distribution off, which would change the probability.
    sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "do_sample": True, **options}
    estimates = []
    sizes = []
    for number in range(populations):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoParticleLeftWarning)  # 0 is a valid estimate
            out = generate(
                model,
                tokenizer,
                prompts,
                combined,
                max_new_tokens=max_new_tokens,
                seed=None if seed is None else seed + number,
                **sampling,
            )
        assert out.log_evidence is not None
        assert out.ess is not None
        estimates.append(out.log_evidence.double().exp())
        sizes.append(out.ess.double())
    all_estimates = torch.stack(estimates)
    mean = all_estimates.mean(0)
    margin = _t_quantile(populations - 1) * all_estimates.std(0) / math.sqrt(populations)
    low = (mean - margin).clamp(0, 1)
    high = (mean + margin).clamp(0, 1)
    return Evidence(mean.tolist(), low.tolist(), high.tolist(), all_estimates, torch.stack(sizes).mean(0).tolist())


def _t_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t: from a table for few degrees of freedom, else by its series."""
    few = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365)
    if freedom <= len(few):
        return few[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / freedom ** (n + 1) for n, term in enumerate(terms))


def _batches(items: Sequence[Item], batch_size: int) -> Iterator[list[Item]]:
    """Batches of items with similar lengths.

    The longest come first, so that memory runs out immediately or not at all. Items with the same context are adjacent,
    so that the context is read once.
    """
    ordered = sorted(items, key=lambda item: (-len(item.context), item.context, len(item.continuation)))
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


@torch.no_grad()
def _score_batch(
    model: Any,
    batch: list[Item],
    cond_logits: dict[View | None, Tensor],
    settings: list[Guidance | None],
    reweightings: list[Reweighter | None],
    classifiers: list[ClassLogProbs | None],
    horizon: int | None,
    models: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (S, T) of all continuation tokens, and whether each is the most likely one.

    Args:
        cond_logits: the conditional logits (T, V) for each part of the model, which groups of settings share.
    """
    logits = branch_logits(model, batch, cond_logits, settings, models)
    device = logits[0].device
    targets = torch.tensor([token for item in batch for token in item.continuation], device=device)
    log_probs = torch.empty(len(settings), len(targets), device=device)
    is_top = torch.empty(len(settings), len(targets), dtype=torch.bool, device=device)
    parts = along_texts(logits, cond_logits, batch, targets, settings, reweightings, classifiers, horizon)
    for number, part, guided in parts:
        picked = guided.gather(-1, targets[part, None])
        log_probs[number, part] = picked[:, 0]
        is_top[number, part] = (guided <= picked).all(-1)
    return log_probs, is_top
