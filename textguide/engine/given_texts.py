"""What every branch says of given texts, and the guided distribution at each of their positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..forward import model_views, prefill
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
    view = None if lead is None else lead.view
    branching = [split(setting).branching for setting in settings]
    lengths = [len(item.continuation) for item in batch]
    device = logits[0].device
    places = torch.tensor([_progress(i, horizon or length) for length in lengths for i in range(length)], device=device)
    places_read = [(item, i) for item in batch for i in range(len(item.continuation))]
    valid = torch.ones(len(settings), len(targets), dtype=torch.bool, device=device)
    so_far = None
    if any(part.reads_likelihoods for part in branching if part is not None):
        so_far = along(torch.stack([_of_targets(one, targets) for one in logits]), lengths)
    for start in range(0, len(targets), POSITIONS_AT_ONCE):
        part = slice(start, start + POSITIONS_AT_ONCE)
        logp = torch.stack([log_softmax(one[part]) for one in logits])
        step = Step(places[part, None])
        for number, guidance in enumerate(branching):
            cond = logp[0] if guidance is not None or view is None else log_softmax(own[None][part])
            extra: Tensor | None = None
            if guidance is not None:
                branches = 1 + len(guidance.branches)
                extra = logp[1:branches] if branches > 1 else None
                classes = classifiers[number]
                step = replace(
                    step,
                    likelihoods=None if so_far is None else so_far[:branches, part],
                    class_log_probs=None if classes is None else _classes(classes, places_read[part]).to(logp.device),
                )
            reweighting = reweightings[number]
            weigh = None if reweighting is None else partial(_reweigh, reweighting, step, places_read[part])
            outcome = guided_step(cond, extra, guidance, step, reweight=weigh, measure=False, normalised=True)
            if outcome.valid is not None:
                valid[number, part] = outcome.valid
            yield number, part, cond if outcome.log_probs is None else outcome.log_probs
    if not bool(valid.all()):
        number, place = (~valid).nonzero()[0].tolist()
        refuse_invalid(settings[number], [places_read[place][0].number])


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
    """Logits of every position that predicts a continuation token, item behind item, (sum of lengths, V)."""
    known = adapter(model)
    device = known.device
    lengths = [len(item.continuation) for item in batch]
    contexts = [item.read_by(branch) for item in batch]
    if known.is_encoder_decoder:
        outputs, mask = prefill.encode(model, [item.sources[branch] for item in batch], device)
        rows = [context + item.continuation[:-1] for context, item in zip(contexts, batch, strict=True)]
        ids = pad_right(rows, device)
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
        and known.reads_chunk_up_to(max(map(len, whole)))
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
