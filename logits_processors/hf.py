"""Processors for the loops of transformers' ``generate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from textguide.engine import branch_inputs
from textguide.engine.custom_generate import empty_source
from textguide.engine.effect import Effect, EffectMeter
from textguide.engine.options import CallArguments
from textguide.forward import prefill
from textguide.forward.model_adapter import adapter
from textguide.forward.row_batch import Rows
from textguide.guidance import CFG, Contrast, Step
from textguide.guidance.algebra import log_softmax
from textguide.guidance.prompts import per_row

from .runs import Runs, calling_list

_HAND_ON_NOTHING = {"JanusForConditionalGeneration"}
"""Classes of transformers whose own ``generate`` leaves the processors out."""


class CFGLogitsProcessor(LogitsProcessor):
    """Classifier-free guidance as a logits processor, with a second pass and a cache of its own.

    For loops that cannot be replaced: beam search, prompt lookup, assisted decoding. Where
    ``custom_generate=textguide.guided_decoding(...)`` works it is faster, since both branches share one pass there.

    One object may serve any number of ``generate`` calls. Rows may be reordered between steps (beam search) and
    tokens may be taken back (speculation): the processor compares the ids it gets with those it has read, and
    follows. Scores are combined in float32 and returned in the dtype they came in.

    Args:
        model: the model of the unconditional branch; usually the one that decodes.
        scale: γ; 1 changes nothing.
        negative_prompt_ids: (N, L) or a list of token ids, with N = 1 or one row per prompt; for an encoder-decoder
            a source. None: the last token of each prompt (for an encoder-decoder an empty source).
        negative_prompt_attention_mask: (N, L), 0 on padding. Needed where rows are padded.
        guidance: a :class:`textguide.CFG` with further settings, or another rule on the same two branches (APG, NAG…),
            in place of ``scale``.
        horizon: ``max_new_tokens`` of the run; needed for a schedule or a window, whose progress it defines.

    Raises:
        ValueError: an argument has a value that cannot work, or the batch does not fit the negative prompts.

    Example:
        >>> model.generate(**inputs, num_beams=4, logits_processor=[CFGLogitsProcessor(model, scale=1.5)])
    """

    def __init__(
        self,
        model: Any,
        scale: float | None = None,
        negative_prompt_ids: Any = None,
        negative_prompt_attention_mask: Tensor | None = None,
        *,
        guidance: Contrast | None = None,
        horizon: int | None = None,
    ) -> None:
        if guidance is not None and (scale is not None or negative_prompt_ids is not None):
            raise ValueError("guidance= already holds the scale and the negative prompt; give one or the other")
        if guidance is None:
            guidance = CFG(
                1.5 if scale is None else scale,
                _unpadded(negative_prompt_ids, negative_prompt_attention_mask),
            )
        if not isinstance(guidance, Contrast) or len(guidance.branches) > 1:
            raise ValueError(
                f"guidance={guidance!r} must be a textguide.CFG or another rule on its two branches; others run "
                "through textguide.guided_decoding"
            )
        if guidance.skip_threshold is not None:
            raise ValueError("skip_threshold works with textguide.guided_decoding alone; leave it None here")
        if guidance.negative_system is not None:
            raise ValueError("negative_system needs the chat; use textguide.generate, or give negative_prompt_ids")
        timed = guidance.schedule != "constant" or (guidance.start, guidance.stop) != (0.0, 1.0)
        if timed and horizon is None:
            raise ValueError("a schedule or a window needs horizon=, the max_new_tokens of the run")
        self.model = adapter(model).base
        if type(self.model).__name__ in _HAND_ON_NOTHING:
            raise ValueError(
                f"{type(self.model).__name__}.generate does not hand logits_processor= to its loop; use "
                "custom_generate=textguide.guided_decoding(...)"
            )
        self.guidance = guidance
        self.horizon = horizon
        self._runs: Runs[_Run] = Runs()
        self._last: _Run | None = None

    @property
    def effect(self) -> Effect:
        """What guidance did in the latest run (rows that finished early count on)."""
        return self._last.meter.summary() if self._last is not None else Effect()

    def reset(self) -> None:
        """Forget every run. Loops that call this object by hand begin a new run with it: ids alone do not always tell
        a run whose prompt continues an earlier text from the next step of the earlier one."""
        self._runs.reset()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Guided scores (R, V) for ids (R, T): log-probabilities in the dtype of ``scores``."""
        if self.guidance.is_neutral:
            return scores
        owner = calling_list()
        input_ids = input_ids.to(adapter(self.model).device)
        run = self._runs.of(
            owner,
            continues=lambda run: run.continues(input_ids, one_by_one=owner is None),
            new=lambda: _Run(self.model, self.guidance, input_ids, self.horizon, scores.device),
        )
        self._last = run
        step = Step.at(input_ids.shape[1] - run.prompt_length, self.horizon) if self.horizon else Step()
        if not self.guidance.active(step):
            return scores
        uncond = run.read(input_ids)
        if uncond.shape[-1] != scores.shape[-1]:
            raise ValueError(
                f"model= has {uncond.shape[-1]} tokens in its vocabulary and the decoding model {scores.shape[-1]}; "
                "use models that share a tokenizer"
            )
        logp = log_softmax(torch.stack([scores.float(), uncond.to(scores.device, torch.float32)]))
        guided = self.guidance.combine(logp, step)
        run.meter.add(guided, logp[0])
        return guided.to(scores.dtype)


@dataclass
class _Match:
    order: Tensor | None  # which read row each row continues; None: its own
    kept: int  # columns of the read ids that stay valid


class _Run:
    """The unconditional branch of one ``generate`` call."""

    def __init__(self, model: Any, guidance: Contrast, ids: Tensor, horizon: int | None, device: Any) -> None:
        self.model = model
        self.prompt_length = ids.shape[1]
        self.rows = ids.shape[0]
        self.meter = EffectMeter(1, device)
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        empty = empty_source(model.config) if self.is_encoder_decoder else None
        if guidance.negative_prompt is None:
            self.negatives = [list(empty) for _ in ids] if empty is not None else ids[:, -1:].tolist()
        else:
            given = guidance.negative_prompt if per_row(guidance.negative_prompt) else (guidance.negative_prompt,)
            rows = [branch_inputs.encode(prompt, None, "negative_prompt_ids") for prompt in given]
            copies = _copies(ids, len(rows))
            self.negatives = branch_inputs.expand(rows, self.rows, "negative_prompt_ids", copies)
        branch_inputs.check_rows(model, self.negatives, "negative_prompt_ids", horizon or 1)
        if not self.is_encoder_decoder:
            pad = getattr(model.generation_config, "pad_token_id", None)
            cond = [_without_padding(row, pad) for row in ids.tolist()]
            branch_inputs.warn_of_same(guidance, cond, [self.negatives], "input_ids", whole=True)
        self.limit = None if self.is_encoder_decoder else branch_inputs.positions(model)
        self.prompt = ids
        self.seen = ids.shape[1]
        self.ids = ids[:, :0]
        self.read_rows: Rows | None = None
        self._match: _Match | None = None

    def continues(self, ids: Tensor, one_by_one: bool = False) -> bool:
        """Whether ``ids`` may be a later step of this run; remembers how its rows follow.

        Args:
            one_by_one: a step adds one token, and more of them are another run.
        """
        if ids.shape[0] != self.rows or (ids.shape[1] <= self.prompt_length and self.read_rows is None):
            return False
        if one_by_one and ids.shape[1] > self.seen + 1:
            return False
        self.seen = ids.shape[1]
        read = self.ids if self.read_rows is not None else self.prompt
        width = read.shape[1]
        if ids.shape[1] > width:
            order = self._order(read, ids[:, :width])
            if order is not False:
                self._match = _Match(order, width)
                return True
        # Speculation: some tokens were taken back, or positions are asked for again.
        common = min(width, ids.shape[1])
        equal = (read[:, :common] == ids[:, :common]).all(dim=0).long().cumprod(0).sum()
        kept = min(int(equal), ids.shape[1] - 1)
        if kept < self.prompt_length or self.read_rows is None:
            return False
        self._match = _Match(None, kept)
        return True

    def read(self, ids: Tensor) -> Tensor:
        """Unconditional logits (R, V) of the position behind ``ids`` (R, T)."""
        match, self._match = self._match, None
        longest = max(map(len, self.negatives)) + ids.shape[1] - self.prompt_length
        if self.limit is not None and longest > self.limit:
            raise ValueError(
                f"negative_prompt_ids and what was written are {longest} tokens, but model= has {self.limit} "
                "positions; shorten one of them"
            )
        if self.read_rows is None:
            logits = self._prefill(ids)
        else:
            assert match is not None
            if match.order is not None:
                self.read_rows.select(match.order)
            if self.read_rows.crop(self.ids.shape[1] - match.kept):
                logits = self.read_rows.forward(ids[:, match.kept :])
            else:
                logits = self._prefill(ids)
        self.ids = ids
        return logits[:, -1]

    def _prefill(self, ids: Tensor) -> Tensor:
        if self.is_encoder_decoder:
            outputs, mask = prefill.encode(self.model, self.negatives, ids.device)
            self.read_rows, logits = prefill.read_encoded(self.model, ids, outputs, mask)
        else:
            written = ids[:, self.prompt_length :].tolist()
            rows = [negative + new for negative, new in zip(self.negatives, written, strict=True)]
            self.read_rows, logits = prefill.read_prompts(self.model, rows, ids.device, fast=True)
        for batch in self.read_rows.batches():
            batch.fast = True
        return logits

    def _order(self, read: Tensor, ids: Tensor) -> Any:
        """Which row of ``read`` each row of ``ids`` equals: None for its own, a LongTensor, or False for none."""
        if torch.equal(read, ids):
            return None
        # Rows may change places where they move away from the same prompt: the beams of one prompt do.
        alike = [[one == other for other in self.negatives] for one in self.negatives]
        same = (ids[:, None, :] == read[None, :, :]).all(dim=-1) & torch.tensor(alike, device=ids.device)
        if not bool(same.any(dim=1).all()):
            return False
        return same.long().argmax(dim=1)


def _copies(ids: Tensor, negatives: int) -> int:
    """How often ``ids`` (R, T) holds each prompt, as samples and beams do, if it has ``negatives`` prompts."""
    prompts = CallArguments.of_caller().prompts
    if prompts is not None:
        return max(1, ids.shape[0] // prompts)
    if ids.shape[0] % negatives:
        return 1
    copies = ids.shape[0] // negatives
    alike = (ids.view(negatives, copies, -1) == ids.view(negatives, copies, -1)[:, :1]).all()
    return copies if bool(alike) else 1


def _without_padding(row: list[int], pad: int | None) -> list[int]:
    """``row`` from its first token that is no padding on."""
    start = next((i for i, token in enumerate(row) if token != pad), len(row) - 1)
    return row[start:]


def _unpadded(ids: Any, mask: Tensor | None) -> Any:
    if ids is None:
        return None
    if isinstance(ids, str):
        raise ValueError(f"negative_prompt_ids={ids!r} is text and needs a tokenizer; pass its token ids")
    if hasattr(ids, "tolist"):
        ids = ids.tolist()
    if ids and isinstance(ids[0], int):
        ids = [ids]
    if mask is None:
        rows = [tuple(row) for row in ids]
    else:
        keep = mask.tolist() if isinstance(mask[0], Tensor) and mask.dim() == 2 else [mask.tolist()]
        if [len(row) for row in keep] != [len(row) for row in ids]:
            raise ValueError("negative_prompt_attention_mask must have the shape of negative_prompt_ids")
        rows = [tuple(t for t, k in zip(row, kept, strict=True) if k) for row, kept in zip(ids, keep, strict=True)]
    if not all(rows):
        raise ValueError("negative_prompt_ids has a row without a token; give every row at least one")
    return rows[0] if len(rows) == 1 else tuple(rows)
