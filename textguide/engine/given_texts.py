"""Read given texts in every branch, and compute the guided distribution at each of their positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..classifiers.class_log_probs import ClassLogProbs, class_log_probs
from ..classifiers.reweighting import Reweighter, reweighter
from ..forward.chunking import FITTING
from ..forward.model_adapter import adapter
from ..guidance import BranchGuidance, Guidance, Step, split
from ..guidance.algebra import log_softmax
from ..guidance.base import SELF
from ..guidance.places import check_place
from ..guidance.views import View
from ..step.guided_step import guided_step, refuse_invalid
from ..step.likelihoods import along
from . import branch_inputs, model_views
from .branch_inputs import empty_source
from .branch_rows import read_branch

POSITIONS_AT_ONCE = 256
"""Positions that are computed together, which bounds the memory for log-probabilities over the vocabulary."""


@dataclass(frozen=True)
class Item:
    """One continuation to score, in token ids.

    Args:
        number: identifies the item for the caller.
        context: what the conditional branch reads before the continuation; for an encoder-decoder, what its decoder
            starts with.
        continuation: the tokens to score, at least one.
        negatives: what each extra branch reads instead of the context.
        sources: for an encoder-decoder, what the encoder of every branch reads, the conditional one first.
    """

    number: int
    context: list[int]
    continuation: list[int]
    negatives: list[list[int]]
    sources: tuple[list[int], ...] = ()

    def read_by(self, branch: int) -> list[int]:
        """What branch number ``branch`` reads before the continuation; 0 is the conditional branch."""
        return self.context if branch == 0 else self.negatives[branch - 1]


def leading(settings: Sequence[Guidance | None]) -> BranchGuidance | None:
    """The first guidance in ``settings`` with the largest number of branches, or None if all settings are plain.

    The settings share their branches, but a guidance may have none at its scale.
    """
    branching = [split(setting).branching for setting in settings]
    guidances = [guidance for guidance in branching if guidance is not None]
    return max(guidances, key=lambda guidance: len(guidance.branches), default=None)


def as_items(
    model: Any, tokenizer: Any, contexts: Any, continuations: Any, system: str | None, lead: BranchGuidance | None
) -> list[Item]:
    """Convert texts to items with the token ids of each branch of ``lead``; arguments as for :func:`score`."""
    prompts = branch_inputs.canonical_prompts(contexts, system, tokenizer)
    if isinstance(continuations, str) or (len(continuations) and isinstance(continuations[0], int)):
        continuations = [continuations]
    if len(prompts) == 1 and len(continuations) > 1:
        prompts = prompts * len(continuations)
    if len(prompts) != len(continuations):
        raise ValueError(f"{len(prompts)} contexts and {len(continuations)} continuations; pass one of each per item")
    cond = [branch_inputs.encode(prompt, tokenizer, f"contexts[{n}]") for n, prompt in enumerate(prompts)]
    targets = _targets(continuations, tokenizer)
    branch_inputs.check_rows(model, cond, "contexts")
    branch_inputs.check_rows(model, targets, "continuations", written=True)
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    empty = empty_source(model.config) if is_encoder_decoder else None
    branches = []
    if lead is not None:
        branches = branch_inputs.branch_rows(lead, cond=cond, tokenizer=tokenizer, prompts=prompts, empty_source=empty)
        for rows in branches:
            branch_inputs.check_rows(model, rows, "negative_prompt")
        branch_inputs.warn_of_same(lead, cond, branches, "contexts", whole=True)
    items = []
    for number, (context, target) in enumerate(zip(cond, targets, strict=True)):
        others = [rows[number] for rows in branches]
        if is_encoder_decoder:
            start = [decoder_start(model)]
            items.append(Item(number, start, target, [start] * len(others), (context, *others)))
        else:
            items.append(Item(number, context, target, others))
    return items


def _targets(continuations: Sequence[Any], tokenizer: Any) -> list[list[int]]:
    """The tokens of every continuation."""
    targets = []
    for number, continuation in enumerate(continuations):
        if isinstance(continuation, str):
            continuation = tokenizer(continuation, add_special_tokens=False).input_ids
        if not len(continuation):
            raise ValueError(f"continuations[{number}] is empty; there is nothing to score")
        targets.append([int(token) for token in continuation])
    return targets


def decoder_start(model: Any) -> int:
    """The token that the decoder of an encoder-decoder starts with.

    Raises:
        ValueError: the configuration does not define it.
    """
    for config in (model.generation_config, model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            token = getattr(config, name, None)
            if token is not None:
                return int(token)
    raise ValueError("the model's configuration does not define decoder_start_token_id; set it")


@torch.no_grad()
def distributions(
    model: Any,
    batch: list[Item],
    guidance: Guidance | None,
    *,
    tokenizer: Any = None,
    models: Mapping[str, Any] | None = None,
) -> Tensor:
    """Guided log-probabilities at every position that predicts a continuation token, item by item, (T, V)."""
    check_place(guidance, "score")
    model = adapter(model).base
    cond_logits: dict[View | None, Tensor] = {}
    logits = branch_logits(model, batch, cond_logits, [guidance], models or {})
    targets = torch.tensor([token for item in batch for token in item.continuation], device=logits[0].device)
    kinds = split(guidance)
    reweighting = reweighter(kinds.reweighting, tokenizer, model)
    classifier = class_log_probs(kinds.branching, tokenizer, model)
    parts = along_texts(logits, cond_logits, batch, targets, [guidance], [reweighting], [classifier], None)
    return torch.cat([guided for _, _, guided in parts])


@torch.no_grad()
def branch_logits(
    model: Any,
    batch: list[Item],
    cond_logits: dict[View | None, Tensor],
    settings: Sequence[Guidance | None],
    models: Mapping[str, Any],
) -> list[Tensor]:
    """Logits (T, V) of every branch, the conditional one first, at each position that predicts a continuation token.

    Args:
        cond_logits: the conditional logits for each part of the model, which are reused if they are in it and added to
            it if not.
        settings: guidances that share their branches.
    """
    lead = leading(settings)
    extra = () if lead is None else lead.branches
    view = None if lead is None else lead.view
    parts = model_views.model_parts(model, models, extra, view)
    views = {view}
    if any(split(setting).branching is None for setting in settings):  # plain decoding runs the whole model
        views.add(None)
    for needed in views:
        if needed not in cond_logits:
            part = model if needed is None else parts[SELF, needed]
            cond_logits[needed] = _continuation_logits(part, batch, 0)
    logits = [cond_logits[view]]
    for number, branch in enumerate(extra, start=1):
        logits.append(_continuation_logits(parts[branch.model_part], batch, number).to(logits[0].device))
    sizes = {one.shape[-1] for one in logits}
    if len(sizes) > 1:
        raise ValueError(f"the models of the branches have vocabularies of {sorted(sizes)} tokens; they must share one")
    return logits


def along_texts(
    logits: list[Tensor],
    cond_logits: Mapping[View | None, Tensor],
    batch: list[Item],
    targets: Tensor,
    settings: list[Guidance | None],
    reweightings: list[Reweighter | None],
    classifiers: list[ClassLogProbs | None],
    horizon: int | None,
) -> Iterator[tuple[int, slice, Tensor]]:
    """Compute the guided distributions, a few positions at a time.

    Args:
        logits: of all branches, from :func:`branch_logits`.
        cond_logits: conditional logits for each part of the model, from :func:`branch_logits`.
        batch: the items.
        targets: the continuation tokens of all items, (T,).
        settings: guidances that share their branches.
        reweightings: for each setting, the classifiers and rewards that it uses.
        classifiers: for each setting, the classifier that its guidance reads.
        horizon: number of tokens from progress 0 to 1; None: the length of each continuation.

    Yields:
        The number of a setting, a slice of positions, and the log-probabilities (P, V) of the setting there.
    """
    guidances = [split(setting).branching for setting in settings]
    positions = [(item, i) for item in batch for i in range(len(item.continuation))]
    steps = _steps(positions, horizon, logits, targets, guidances)
    # A setting without branches runs the whole model, even if the other settings run a part of it.
    plain = cond_logits.get(None, logits[0])
    valid = torch.ones(len(settings), len(targets), dtype=torch.bool, device=logits[0].device)
    for start in range(0, len(targets), POSITIONS_AT_ONCE):
        part = slice(start, start + POSITIONS_AT_ONCE)
        logp = torch.stack([log_softmax(one[part]) for one in logits])
        for number, guidance in enumerate(guidances):
            step = _step_at(steps, part, guidance, classifiers[number], positions[part])
            reweighting = reweightings[number]
            reweight = None if reweighting is None else partial(_reweigh, reweighting, step, positions[part])
            cond = log_softmax(plain[part]) if guidance is None else logp[0]
            count = 0 if guidance is None else len(guidance.branches)
            extra = logp[1 : 1 + count] if count else None
            outcome = guided_step(cond, extra, guidance, step, reweight=reweight, measure=False, normalised=True)
            if outcome.valid is not None:
                valid[number, part] = outcome.valid
            yield number, part, cond if outcome.log_probs is None else outcome.log_probs
    if not bool(valid.all()):
        number, position = (~valid).nonzero()[0].tolist()
        refuse_invalid(settings[number], [positions[position][0].number])


def _steps(
    positions: Sequence[tuple[Item, int]],
    horizon: int | None,
    logits: list[Tensor],
    targets: Tensor,
    guidances: Sequence[BranchGuidance | None],
) -> Step:
    """The steps of all positions, (T, 1), with the likelihoods of all branches if a guidance reads them."""
    progress = [float(Step.at(i, horizon or len(item.continuation)).progress) for item, i in positions]
    steps = Step(torch.tensor(progress, device=logits[0].device)[:, None])
    if not any(guidance is not None and guidance.reads_likelihoods for guidance in guidances):
        return steps
    lengths = [len(item.continuation) for item, i in positions if i == 0]
    return replace(steps, likelihoods=along(torch.stack([_of_targets(one, targets) for one in logits]), lengths))


def _step_at(
    steps: Step,
    part: slice,
    guidance: BranchGuidance | None,
    classifier: ClassLogProbs | None,
    positions: Sequence[tuple[Item, int]],
) -> Step:
    """The step of some positions, with the inputs that ``guidance`` reads."""
    assert isinstance(steps.progress, Tensor)
    step = replace(steps, progress=steps.progress[part], likelihoods=None)
    if guidance is None:
        return step
    if steps.likelihoods is not None:
        step = replace(step, likelihoods=steps.likelihoods[: 1 + len(guidance.branches), part])
    if classifier is not None:
        step = replace(step, class_log_probs=_classes(classifier, positions).to(steps.progress.device))
    return step


def _classes(classifier: ClassLogProbs, positions: Sequence[tuple[Item, int]]) -> Tensor:
    """The class log-probabilities of the text before each position, (n, P)."""
    classifier.begin([item.context for item, _ in positions], [item.continuation[:i] for item, i in positions])
    return classifier.of(range(len(positions)))


def _of_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities (T,) of the tokens ``targets`` (T,) under ``logits`` (T, V), some positions at a time."""
    parts = zip(logits.split(POSITIONS_AT_ONCE), targets.split(POSITIONS_AT_ONCE), strict=True)
    return torch.cat([log_softmax(some).gather(-1, token[:, None])[:, 0] for some, token in parts])


def _reweigh(
    reweighter: Reweighter, step: Step, positions: Sequence[tuple[Item, int]], log_probs: Tensor
) -> tuple[Tensor, Tensor]:
    """Reweight the distributions (P, V) at some positions, each of which is an item and the index of its token."""
    reweighter.begin([item.context for item, _ in positions], [item.continuation[:i] for item, i in positions])
    return reweighter(log_probs, step, [i for _, i in positions], range(len(positions)))


@torch.no_grad()
def _continuation_logits(model: Any, batch: list[Item], branch: int) -> Tensor:
    """Logits of every position that predicts a continuation token, item after item, (sum of lengths, V)."""
    known = adapter(model)
    if known.is_encoder_decoder:
        return _decoder_logits(model, batch, branch)
    lengths = [len(item.continuation) for item in batch]
    contexts = [item.read_by(branch) for item in batch]
    keep = max(lengths)
    whole = [context + item.continuation[:-1] for context, item in zip(contexts, batch, strict=True)]
    longest = max(len(row) for row in whole)
    contexts_differ = len({tuple(context) for context in contexts}) == len(batch)
    if known.has_recurrent_state:  # the state is only exact if a row is read on its own
        parts = [read_branch(model, [row], keep=keep, fast=False, chunking=FITTING)[1][0] for row in whole]
    elif contexts_differ and known.is_causal and known.reads_chunk_up_to(longest):
        parts = list(read_branch(model, whole, keep=keep, fast=False, chunking=FITTING)[1])
    else:
        return _after_shared_contexts(model, contexts, [item.continuation for item in batch])
    return torch.cat([part[-length:] for part, length in zip(parts, lengths, strict=True)])


def _decoder_logits(model: Any, batch: list[Item], branch: int) -> Tensor:
    """:func:`_continuation_logits` of an encoder-decoder, whose context is a source."""
    sources = [item.sources[branch] for item in batch]
    rows = [item.read_by(branch) + item.continuation[:-1] for item in batch]
    ids = pad_right(rows, adapter(model).device)
    first = ids if adapter(model).reads_chunks else ids[:, :1]
    started, logits = read_branch(model, sources, first, keep=first.shape[1])
    rest = ids.shape[1] - first.shape[1]
    if rest:
        logits = torch.cat([logits, started.forward(ids[:, -rest:], keep=rest)], dim=1)
    return torch.cat([row[: len(item.continuation)] for row, item in zip(logits, batch, strict=True)])


def _after_shared_contexts(model: Any, contexts: list[list[int]], continuations: list[list[int]]) -> Tensor:
    """Read every context once, however many continuations it has, and then the continuations."""
    device = adapter(model).device
    rows, first = read_branch(model, contexts, fast=False, chunking=FITTING)
    longer = [row for row, continuation in enumerate(continuations) if len(continuation) > 1]
    rest: dict[int, Tensor] = {}
    if longer:
        ids = pad_right([continuations[row][:-1] for row in longer], device)
        rows.select(torch.tensor(longer, device=device))
        rest = dict(zip(longer, rows.forward(ids, keep=ids.shape[1]), strict=True))
    parts = []
    for row, continuation in enumerate(continuations):
        parts.append(first[row])
        if row in rest:
            parts.append(rest[row][: len(continuation) - 1])
    return torch.cat(parts)


def pad_right(rows: list[list[int]], device: Any) -> Tensor:
    """Rows of token ids as a tensor, (R, longest)."""
    width = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
