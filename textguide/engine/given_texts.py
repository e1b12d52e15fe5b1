"""What every branch says of given texts, and the guided distribution at each of their positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..forward import model_views
from ..forward.model_adapter import adapter
from ..guidance import BranchGuidance, Guidance, Step, split
from ..guidance.algebra import log_softmax
from ..guidance.base import SELF
from ..guidance.places import check_place
from ..guidance.views import View
from ..step.class_log_probs import ClassLogProbs, class_log_probs
from ..step.guided_step import guided_step, refuse_invalid
from ..step.likelihoods import along
from ..step.reweighting import Reweighter, reweighter
from . import branch_inputs
from .branch_inputs import empty_source
from .branch_rows import read_branch

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


def leading(settings: Sequence[Guidance | None]) -> BranchGuidance | None:
    """The first guidance with branches among ``settings``; one that has none at its scale stands behind one that has
    some. None where all are plain."""
    branching = (split(setting).branching for setting in settings)
    return max((one for one in branching if one is not None), key=lambda one: len(one.branches), default=None)


def as_items(
    model: Any, tokenizer: Any, contexts: Any, continuations: Any, system: str | None, lead: BranchGuidance | None
) -> list[Item]:
    """What each branch of ``lead`` reads, in token ids; arguments as for :func:`score`."""
    prompts = branch_inputs.canonical_prompts(contexts, system, tokenizer)
    if isinstance(continuations, str) or (len(continuations) and isinstance(continuations[0], int)):
        continuations = [continuations]
    if len(prompts) == 1 and len(continuations) > 1:
        prompts = prompts * len(continuations)
    if len(prompts) != len(continuations):
        raise ValueError(f"{len(prompts)} contexts and {len(continuations)} continuations; give one of each per item")
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
            raise ValueError(f"continuations[{number}] has no token; there is nothing to score")
        targets.append([int(token) for token in continuation])
    return targets


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


@torch.no_grad()
def distributions(
    model: Any,
    batch: list[Item],
    guidance: Guidance | None,
    *,
    tokenizer: Any = None,
    models: Mapping[str, Any] | None = None,
) -> Tensor:
    """Guided log-probabilities at every position that predicts a continuation token, item behind item, (T, V)."""
    check_place(guidance, "score")
    model = adapter(model).base
    own: dict[View | None, Tensor] = {}
    logits = branch_logits(model, batch, own, [guidance], models or {})
    targets = torch.tensor([token for item in batch for token in item.continuation], device=logits[0].device)
    kinds = split(guidance)
    weighing, asked = (
        reweighter(kinds.reweighting, tokenizer, model),
        class_log_probs(kinds.branching, tokenizer, model),
    )
    parts = along_texts(logits, own, batch, targets, [guidance], [weighing], [asked], None)
    return torch.cat([guided for _, _, guided in parts])


@torch.no_grad()
def branch_logits(
    model: Any,
    batch: list[Item],
    own: dict[View | None, Tensor],
    settings: Sequence[Guidance | None],
    models: Mapping[str, Any],
) -> list[Tensor]:
    """Logits (T, V) of every branch, the conditional one first, at each position that predicts a continuation token.

    Args:
        own: gets the conditional logits by what of the model they come from, and is asked for them first.
        settings: guidances that share their branches.
    """
    lead = leading(settings)
    extra, view = (lead.branches, lead.view) if lead is not None else ((), None)
    found = model_views.model_parts(model, models, extra, view)
    plain = any(split(setting).branching is None for setting in settings)
    for needed in {view, None} if plain else {view}:
        if needed not in own:
            own[needed] = _continuation_logits(model if needed is None else found[SELF, needed], batch, 0)
    others = [_continuation_logits(found[branch.model_part], batch, n) for n, branch in enumerate(extra, start=1)]
    logits = [own[view], *(other.to(own[view].device) for other in others)]
    sizes = {one.shape[-1] for one in logits}
    if len(sizes) > 1:
        raise ValueError(f"the models of the branches have vocabularies of {sorted(sizes)} tokens; they must share one")
    return logits


def along_texts(
    logits: list[Tensor],
    own: Mapping[View | None, Tensor],
    batch: list[Item],
    targets: Tensor,
    settings: list[Guidance | None],
    reweightings: list[Reweighter | None],
    classifiers: list[ClassLogProbs | None],
    horizon: int | None,
) -> Iterator[tuple[int, slice, Tensor]]:
    """The number of a setting, some positions, and its log-probabilities (P, V) there; a few positions at a time."""
    lead = leading(settings)
    guidances = [split(setting).branching for setting in settings]
    positions = [(item, i) for item in batch for i in range(len(item.continuation))]
    steps = _steps(positions, horizon, logits, targets, guidances)
    # A setting without branches runs the whole model, although others run it with a change inside.
    plain = own[None] if lead is not None and lead.view is not None and None in own else logits[0]
    valid = torch.ones(len(settings), len(targets), dtype=torch.bool, device=logits[0].device)
    for start in range(0, len(targets), POSITIONS_AT_ONCE):
        part = slice(start, start + POSITIONS_AT_ONCE)
        logp = torch.stack([log_softmax(one[part]) for one in logits])
        for number, guidance in enumerate(guidances):
            step = _step_at(steps, part, guidance, classifiers[number], positions[part])
            reweighting = reweightings[number]
            reweight = None if reweighting is None else partial(_reweigh, reweighting, step, positions[part])
            cond, extra = (log_softmax(plain[part]), None) if guidance is None else _branches(logp, guidance)
            outcome = guided_step(cond, extra, guidance, step, reweight=reweight, measure=False, normalised=True)
            if outcome.valid is not None:
                valid[number, part] = outcome.valid
            yield number, part, cond if outcome.log_probs is None else outcome.log_probs
    if not bool(valid.all()):
        number, place = (~valid).nonzero()[0].tolist()
        refuse_invalid(settings[number], [positions[place][0].number])


def _branches(logp: Tensor, guidance: BranchGuidance) -> tuple[Tensor, Tensor | None]:
    """Of the log-probabilities of all branches those that ``guidance`` reads: the conditional one, and the others."""
    count = len(guidance.branches)
    return logp[0], logp[1 : 1 + count] if count else None


def _steps(
    positions: Sequence[tuple[Item, int]],
    horizon: int | None,
    logits: list[Tensor],
    targets: Tensor,
    guidances: Sequence[BranchGuidance | None],
) -> Step:
    """The steps of all positions, (T, 1), with the likelihoods of all branches if one of the guidances reads them."""
    progress = [_progress(i, horizon or len(item.continuation)) for item, i in positions]
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
    """The step of some positions, with what ``guidance`` reads of it."""
    assert isinstance(steps.progress, Tensor)
    step = replace(steps, progress=steps.progress[part], likelihoods=None)
    if guidance is None:
        return step
    if steps.likelihoods is not None:
        step = replace(step, likelihoods=steps.likelihoods[: 1 + len(guidance.branches), part])
    if classifier is not None:
        step = replace(step, class_log_probs=_classes(classifier, positions).to(steps.progress.device))
    return step


def _classes(classifier: ClassLogProbs, places: Sequence[tuple[Item, int]]) -> Tensor:
    """The class log-probabilities of the text before each place, (n, P)."""
    classifier.begin([item.context for item, _ in places], [item.continuation[:i] for item, i in places])
    return classifier.of(range(len(places)))


def _of_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities (T,) of the tokens ``targets`` (T,) under ``logits`` (T, V), a part at a time."""
    parts = zip(logits.split(POSITIONS_AT_ONCE), targets.split(POSITIONS_AT_ONCE), strict=True)
    return torch.cat([log_softmax(some).gather(-1, token[:, None])[:, 0] for some, token in parts])


def _reweigh(
    reweighter: Reweighter, step: Step, places: Sequence[tuple[Item, int]], log_probs: Tensor
) -> tuple[Tensor, Tensor]:
    """Reweight the distributions (P, V) at some places, each of which is an item and a number of its tokens."""
    reweighter.begin([item.context for item, _ in places], [item.continuation[:i] for item, i in places])
    return reweighter(log_probs, step, [i for _, i in places], range(len(places)))


def _progress(index: int, horizon: int) -> float:
    return float(Step.at(index, horizon).progress)


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
        parts = [read_branch(model, [row], keep=keep, fast=False)[1][0] for row in whole]
    elif contexts_differ and known.is_causal and known.reads_chunk_up_to(longest):
        parts = list(read_branch(model, whole, keep=keep, fast=False)[1])
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
    """Read every context once, whatever the number of its continuations, and these behind it."""
    device = adapter(model).device
    rows, first = read_branch(model, contexts, fast=False)
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
