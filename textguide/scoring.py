"""``textguide.score``: log-likelihood of given continuations under guidance, many scales from one pair of passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .engine import branch_inputs
from .engine.custom_generate import empty_source
from .engine.likelihoods import along
from .engine.opinions import Opinions, opinions
from .engine.results import ScoreResult
from .engine.reweighting import Reweighter, reweighter
from .forward import model_views, prefill
from .forward.model_adapter import adapter
from .guidance import CFG, BranchGuidance, Guidance, Step, algebra, as_guidance, split, with_scale
from .guidance.algebra import log_softmax
from .guidance.base import SELF
from .guidance.places import check_place
from .guidance.views import View
from .support.arguments import check_model_and_tokenizer

# Positions whose log-probabilities over the vocabulary are held at once.
POSITIONS_AT_ONCE = 256


@dataclass(frozen=True)
class Item:
    """One continuation to score, in token ids.

    Args:
        number: the caller's name for it.
        context: what the conditional branch reads (for an encoder-decoder what its decoder starts with).
        continuation: the tokens to score, at least one.
        negatives: what each extra branch reads in place of the context.
        sources: for an encoder-decoder, what the encoder of every branch reads, the conditional one first.
    """

    number: int
    context: list[int]
    continuation: list[int]
    negatives: list[list[int]]
    sources: tuple[list[int], ...] = ()

    def read_by(self, branch: int) -> list[int]:
        """What branch ``branch`` reads in front of the continuation; 0 is the conditional one."""
        return self.context if branch == 0 else self.negatives[branch - 1]


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
    items = _items(model, tokenizer, contexts, continuations, system, leading(chosen))
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
        adapter(model).reads_apart([])  # refuses models that branches cannot share
        for item in items if not adapter(model).is_encoder_decoder else ():
            adapter(model).check_lengths([len(item.context)], len(item.continuation))
    reweightings = [[reweighter(split(one).reweighting, tokenizer, model) for one in group] for group, _ in groups]
    judged = [[opinions(split(one).branching, tokenizer, model) for one in group] for group, _ in groups]
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


def leading(settings: Sequence[Guidance | None]) -> BranchGuidance | None:
    """The first guidance with branches among ``settings``; one that has none at its scale stands behind one that has
    some. None where all are plain."""
    branching = (split(setting).branching for setting in settings)
    return max((one for one in branching if one is not None), key=lambda one: len(one.branches), default=None)


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


def _items(
    model: Any, tokenizer: Any, contexts: Any, continuations: Any, system: str | None, lead: BranchGuidance | None
) -> list[Item]:
    prompts = branch_inputs.canonical_prompts(contexts, system, tokenizer)
    if isinstance(continuations, str) or (len(continuations) and isinstance(continuations[0], int)):
        continuations = [continuations]
    if len(prompts) == 1 and len(continuations) > 1:
        prompts = prompts * len(continuations)
    if len(prompts) != len(continuations):
        raise ValueError(f"{len(prompts)} contexts and {len(continuations)} continuations; give one of each per item")
    cond = [branch_inputs.encode(prompt, tokenizer, f"contexts[{n}]") for n, prompt in enumerate(prompts)]
    targets = []
    for number, continuation in enumerate(continuations):
        if isinstance(continuation, str):
            continuation = tokenizer(continuation, add_special_tokens=False).input_ids
        if not len(continuation):
            raise ValueError(f"continuations[{number}] has no token; there is nothing to score")
        targets.append([int(token) for token in continuation])
    branch_inputs.check_rows(model, cond, "contexts")
    branch_inputs.check_rows(model, targets, "continuations", written=True)
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    empty = empty_source(model.config) if is_encoder_decoder else None
    rows = []
    if lead is not None:
        rows = branch_inputs.branch_rows(lead, cond=cond, tokenizer=tokenizer, prompts=prompts, empty_source=empty)
        for row in rows:
            branch_inputs.check_rows(model, row, "negative_prompt")
        branch_inputs.warn_of_same(lead, cond, rows, "contexts", whole=True)
    items = []
    for number, (context, target) in enumerate(zip(cond, targets, strict=True)):
        others = [branch[number] for branch in rows]
        if is_encoder_decoder:
            start = [decoder_start(model)]
            items.append(Item(number, start, target, [start] * len(others), (context, *others)))
        else:
            items.append(Item(number, context, target, others))
    return items


def decoder_start(model: Any) -> int:
    """The token with which an encoder-decoder's decoder starts.

    Raises:
        ValueError: its configuration names none.
    """
    for config in (model.generation_config, model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            token = getattr(config, name, None)
            if token is not None:
                return int(token)
    raise ValueError("the model's configuration names no decoder_start_token_id; set it")


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
    judged: list[Opinions | None],
    horizon: int | None,
    models: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (S, T) of all continuation tokens, and whether each is the most likely one; ``own`` keeps the
    conditional logits (T, V) by what of the model they come from."""
    lead = leading(settings)
    extra, view = (lead.branches, lead.view) if lead is not None else ((), None)
    found = model_views.model_parts(model, models, extra, view)
    branching = [split(setting).branching for setting in settings]
    plain = [one for one in branching if one is None]
    for needed in {view, None} if plain else {view}:
        if needed not in own:
            own[needed] = _continuation_logits(model if needed is None else found[SELF, needed], batch, 0)
    others = [_continuation_logits(found[branch.model_part], batch, n) for n, branch in enumerate(extra, start=1)]
    distributions = [own[view], *(other.to(own[view].device) for other in others)]
    sizes = {distribution.shape[-1] for distribution in distributions}
    if len(sizes) > 1:
        raise ValueError(f"the models of the branches have vocabularies of {sorted(sizes)} tokens; they must share one")
    lengths = [len(item.continuation) for item in batch]
    targets = torch.tensor([token for item in batch for token in item.continuation], device=distributions[0].device)
    places = torch.tensor(
        [_progress(i, horizon or length) for length in lengths for i in range(length)], device=distributions[0].device
    )
    places_read = [(item, i) for item in batch for i in range(len(item.continuation))]
    log_probs = torch.empty(len(settings), len(targets), device=distributions[0].device)
    is_top = torch.empty(len(settings), len(targets), dtype=torch.bool, device=distributions[0].device)
    broken = torch.zeros(len(settings), len(targets), dtype=torch.bool, device=distributions[0].device)
    so_far = None
    if any(part.reads_likelihoods for part in branching if part is not None):
        given = torch.stack([_of_targets(distribution, targets) for distribution in distributions])
        so_far = along(given, lengths)
    for start in range(0, len(targets), POSITIONS_AT_ONCE):
        part = slice(start, start + POSITIONS_AT_ONCE)
        logp = torch.stack([log_softmax(distribution[part]) for distribution in distributions])
        step = Step(places[part, None])
        token = targets[part, None]
        for number, guidance in enumerate(branching):
            guided = logp[0] if guidance is not None or view is None else log_softmax(own[None][part])
            if guidance is not None:
                count, asked = 1 + len(guidance.branches), judged[number]
                told = None if so_far is None else so_far[:count, part]
                said = None if asked is None else _said(asked, places_read[part]).to(logp.device)
                guided = guidance.combine(logp[:count], replace(step, likelihoods=told, opinions=said))
                broken[number, part] = algebra.broken(guided)
            reweighting = reweightings[number]
            if reweighting is not None:
                guided = _reweighed(reweighting, guided, step, places_read[part])
            picked = guided.gather(-1, token)
            log_probs[number, part] = picked[:, 0]
            is_top[number, part] = (guided <= picked).all(-1)
    if bool(broken.any()):
        number, place = broken.nonzero()[0].tolist()
        algebra.refuse_broken(settings[number], [places_read[place][0].number])
    return log_probs, is_top


def _said(asked: Opinions, places: Sequence[tuple[Item, int]]) -> Tensor:
    """What a classifier says of the texts in front of each place, (n, P)."""
    asked.begin([item.context for item, _ in places], [item.continuation[:i] for item, i in places])
    return asked.of(range(len(places)))


def _of_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities (T,) of the tokens ``targets`` (T,) under ``logits`` (T, V), a part at a time."""
    parts = zip(logits.split(POSITIONS_AT_ONCE), targets.split(POSITIONS_AT_ONCE), strict=True)
    return torch.cat([log_softmax(some).gather(-1, token[:, None])[:, 0] for some, token in parts])


def _reweighed(reweighting: Reweighter, guided: Tensor, step: Step, places: Sequence[tuple[Item, int]]) -> Tensor:
    """The distributions (P, V) with the candidates at each place weighed; a place is an item and a number of its
    tokens."""
    reweighting.begin([item.context for item, _ in places], [item.continuation[:i] for item, i in places])
    changed, acted = reweighting(log_softmax(guided), step, [i for _, i in places], range(len(places)))
    return torch.where(acted[:, None], changed, guided)


def _progress(index: int, horizon: int) -> float:
    return float(Step.at(index, horizon).progress)


@torch.no_grad()
def _continuation_logits(model: Any, batch: list[Item], branch: int) -> Tensor:
    """Logits of every position that predicts a continuation token, item behind item, (sum of lengths, V)."""
    known = adapter(model)
    device = known.device
    lengths = [len(item.continuation) for item in batch]
    contexts = [item.read_by(branch) for item in batch]
    if known.is_encoder_decoder:
        outputs, mask = prefill.encode(model, [item.sources[branch] for item in batch], device)
        rows = [context + item.continuation[:-1] for context, item in zip(contexts, batch, strict=True)]
        ids = _pad_right(rows, device)
        first = ids if known.reads_chunks else ids[:, :1]
        started, logits = prefill.read_encoded(model, first, outputs, mask, keep=first.shape[1])
        if first is not ids and ids.shape[1] > 1:
            logits = torch.cat([logits, started.forward(ids[:, 1:], keep=ids.shape[1] - 1)], dim=1)
        return torch.cat([row[:length] for row, length in zip(logits, lengths, strict=True)])
    keep = max(lengths)
    whole = [context + item.continuation[:-1] for context, item in zip(contexts, batch, strict=True)]
    if known.has_recurrent_state:
        parts = [prefill.read_prompts(model, [row], device, keep=keep)[1][0] for row in whole]
    elif (
        len({tuple(c) for c in contexts}) == len(batch)
        and known.is_causal
        and known.reads_at_once(max(map(len, whole)))
    ):
        parts = list(prefill.read_prompts(model, whole, device, keep=keep)[1])
    else:
        return _after_shared_contexts(model, contexts, [item.continuation for item in batch])
    return torch.cat([part[-length:] for part, length in zip(parts, lengths, strict=True)])


def _after_shared_contexts(model: Any, contexts: list[list[int]], continuations: list[list[int]]) -> Tensor:
    """Read every context once, whatever the number of its continuations, and these behind it."""
    device = adapter(model).device
    rows, first = prefill.read_prompts(model, contexts, device)
    longer = [row for row, continuation in enumerate(continuations) if len(continuation) > 1]
    rest: dict[int, Tensor] = {}
    if longer:
        ids = _pad_right([continuations[row][:-1] for row in longer], device)
        rows.select(torch.tensor(longer, device=device))
        rest = dict(zip(longer, rows.forward(ids, keep=ids.shape[1]), strict=True))
    parts = []
    for row, continuation in enumerate(continuations):
        parts.append(first[row])
        if row in rest:
            parts.append(rest[row][: len(continuation) - 1])
    return torch.cat(parts)


def _pad_right(rows: list[list[int]], device: Any) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
