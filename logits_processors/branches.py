"""The extra branches of a run of transformers' ``generate``, which a logits processor recognises by its ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from textguide.engine import branch_inputs, model_views
from textguide.engine.branch_inputs import empty_source
from textguide.engine.branch_rows import BranchRows, read_branch
from textguide.engine.caller import GenerateCall
from textguide.forward.chunking import FITTING
from textguide.forward.model_adapter import adapter
from textguide.guidance import Branch, BranchGuidance, Step
from textguide.guidance.needs import Need
from textguide.guidance.prompts import per_row
from textguide.step.effect import EffectMeter

REMOVABLE = 32
"""How many tokens speculation may remove if the guidance reads the likelihoods of a text."""


class Processor(Protocol):
    """Arguments that the processor passes to a run."""

    rows_of: str
    model: Any
    tokenizer: Any
    models: Mapping[str, Any] | None
    prompts: Any
    horizon: int | None


@dataclass
class _Match:
    """How new ids continue the ids that were read before.

    Args:
        order: for each row, the row that it continues; None: itself.
        columns: number of columns of the read ids that are still valid.
    """

    order: Tensor | None
    columns: int


class BranchRun:
    """The extra branches of one ``generate`` call.

    The branches that one model or one part of a model runs are rows of one pass, ordered by branch.
    """

    def __init__(
        self, processor: Processor, guidance: BranchGuidance, ids: Tensor, device: Any, call: GenerateCall | None
    ) -> None:
        model = processor.model
        self.guidance = guidance
        self.prompt_length = ids.shape[1]
        self.rows = ids.shape[0]
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        if self.is_encoder_decoder and {Need.EDIT, Need.SYSTEM} & guidance.needs:
            raise ValueError(_needs_prompt(guidance))
        self.copies = _copies(ids, guidance, call)
        cond = prompt_rows(ids, None if self.is_encoder_decoder else call, model.generation_config)
        branches = [*guidance.branches]
        # If the guidance changes the model inside, the scores of `generate` are not those of the conditional branch.
        self.rereads = guidance.view is not None
        if self.rereads:
            branches.insert(0, Branch(same_prompt=True, view=guidance.view))
        self.meter = EffectMeter(len(branches), device)
        if self.is_encoder_decoder and any(branch.same_prompt for branch in branches):
            raise ValueError(_needs_prompt(guidance))
        texts = self._texts(processor, branches, cond)
        self.readers = _readers(processor, branches, texts)
        if not self.is_encoder_decoder and not self.rereads:
            branch_inputs.warn_of_same(guidance, cond, texts, "input_ids", whole=True)
        # Rows may be reordered if every branch reads the same prompt for them, like the beams of one prompt.
        inputs = [tuple(tuple(rows[row]) for rows in texts) for row in range(self.rows)]
        first = torch.tensor([inputs.index(row) for row in inputs], device=ids.device)
        self.same_prompt = first[:, None] == first[None, :]
        self.prompt = ids
        self.length = ids.shape[1]  # of the newest ids
        self.ids = ids[:, :0]
        self._match: _Match | None = None
        # For each number of columns of ids: the likelihoods so far, and the log-probabilities of the next token.
        self._steps: dict[int, tuple[Tensor, Tensor]] = {}

    def _texts(
        self, processor: Processor, branches: Sequence[Branch], cond: branch_inputs.Rows
    ) -> list[branch_inputs.Rows]:
        """The token ids that each of ``branches`` reads in every row."""
        tokenizer = processor.tokenizer
        empty = empty_source(processor.model.config) if self.is_encoder_decoder else None
        prompts = None
        if processor.prompts is not None:
            canonical = branch_inputs.canonical_prompts(processor.prompts, None, tokenizer)
            prompts = branch_inputs.expand(canonical, self.rows, "prompts", self.copies)
        texts = []
        for branch in branches:
            texts.append(branch_inputs.rows_of(branch, cond, tokenizer, prompts, empty, self.copies, processor.rows_of))
        return texts

    @property
    def has_read(self) -> bool:
        """Whether the branches have read anything."""
        return self.ids.shape[1] > 0

    def step(self, ids: Tensor, horizon: int | None) -> Step:
        """The step that follows ``ids``."""
        rows = tuple(range(self.rows))
        index = ids.shape[1] - self.prompt_length
        likelihoods = self._likelihoods(ids) if self.guidance.reads_likelihoods else None
        return Step.at(index if horizon else 0, horizon or 1, rows, self.rows, self.copies, likelihoods)

    def count_change(self) -> None:
        """Record the newest step in :attr:`meter` if the guidance changes the model inside."""
        view = self.guidance.view
        if view is None:
            return
        module = self.readers[0].model  # the changed model is the first branch
        self.meter.inside = view.change(adapter(module).text_config.num_hidden_layers)
        self.meter.inside_steps += self.rows
        self.meter.moved = model_views.movement_of(module)

    def keep(self, ids: Tensor, logp: Tensor, step: Step) -> None:
        """Store the log-probabilities (n, R, V) after ``ids`` if the next step needs those of its tokens."""
        if step.likelihoods is not None:
            self._steps[ids.shape[1]] = (step.likelihoods, logp)
            self._steps.pop(ids.shape[1] - REMOVABLE, None)

    def _likelihoods(self, ids: Tensor) -> Tensor:
        """The log-probability of the tokens after the prompt under every branch, (n, R)."""
        order = None if self._match is None else self._match.order
        if order is not None:
            self._steps = {width: (sums[:, order], logp[:, order]) for width, (sums, logp) in self._steps.items()}
        if ids.shape[1] == self.prompt_length:
            return torch.zeros(1 + len(self.guidance.branches), self.rows, dtype=torch.float64, device=ids.device)
        if ids.shape[1] - 1 not in self._steps:
            raise ValueError(
                f"guidance {self.guidance.name!r} needs every step of a text, and {ids.shape[1] - self.prompt_length} "
                "tokens of it were written or removed in one step; call the processor at every token"
            )
        sums, logp = self._steps[ids.shape[1] - 1]
        chosen = ids[:, -1].to(logp.device)[None, :, None].expand(len(logp), -1, 1)
        return sums + logp.gather(-1, chosen).squeeze(-1).to(sums)

    def continues(self, ids: Tensor, one_by_one: bool = False) -> bool:
        """Whether ``ids`` can be a later step of this run; if so, store how they continue the earlier ids.

        Args:
            one_by_one: every step adds one token, so that ids with more new tokens belong to another run.
        """
        if ids.shape[0] != self.rows or (ids.shape[1] <= self.prompt_length and not self.has_read):
            return False
        if one_by_one and ids.shape[1] > self.length + 1:
            return False
        self.length = ids.shape[1]
        read = self.ids if self.has_read else self.prompt
        width = read.shape[1]
        if ids.shape[1] > width:
            order = self._order(read, ids[:, :width])
            if order is not False:
                self._match = _Match(order, width)
                return True
        # Speculation: some tokens were removed, or the same position is computed again.
        common = min(width, ids.shape[1])
        equal = (read[:, :common] == ids[:, :common]).all(dim=0).long().cumprod(0).sum()
        columns = min(int(equal), ids.shape[1] - 1)
        if columns < self.prompt_length or not self.has_read:
            return False
        self._match = _Match(None, columns)
        return True

    def read(self, ids: Tensor, size: int) -> Tensor:
        """Logits (branches, R, V) of the token after ``ids`` (R, T)."""
        match = self._match
        self._match = None
        written = ids[:, self.prompt_length :].tolist()
        branch_logits: dict[int, Tensor] = {}
        for reader in self.readers:
            reader.check_length(len(written[0]))
            logits = None
            if match is not None and self.has_read:
                logits = reader.resume(ids, match.order, match.columns, self.ids.shape[1])
            if logits is None:
                logits = reader.start(ids, written)
            if logits.shape[-1] != size:
                raise ValueError(
                    f"model= has {logits.shape[-1]} tokens in its vocabulary and the decoding model {size}; "
                    "use models that share a tokenizer"
                )
            branch_logits |= dict(zip(reader.branches, logits.split(self.rows), strict=True))
        self.ids = ids
        if not branch_logits:
            return torch.empty(0, self.rows, size, device=ids.device)
        return torch.stack([branch_logits[number].to(ids.device) for number in sorted(branch_logits)])

    def _order(self, read: Tensor, ids: Tensor) -> Any:
        """For each row of ``ids``, the equal row of ``read``: None if all rows are in order, False if there is none."""
        if torch.equal(read, ids):
            return None
        same = (ids[:, None, :] == read[None, :, :]).all(dim=-1) & self.same_prompt
        if not bool(same.any(dim=1).all()):
            return False
        if self.guidance.across_rows:
            raise ValueError(
                f"rows were reordered, as in beam search, and guidance {self.guidance.name!r} compares rows with "
                "each other; leave num_beams out"
            )
        return same.long().argmax(dim=1)


def _readers(processor: Processor, branches: Sequence[Branch], texts: Sequence[branch_inputs.Rows]) -> list[_Reader]:
    """One reader for each model part, with the branches that it runs."""
    parts = model_views.model_parts(processor.model, processor.models, branches)
    rows_of_part: dict[Any, dict[int, branch_inputs.Rows]] = {}
    for number, (branch, rows) in enumerate(zip(branches, texts, strict=True)):
        branch_inputs.check_rows(parts[branch.model_part], rows, processor.rows_of, processor.horizon or 1)
        rows_of_part.setdefault(branch.model_part, {})[number] = rows
    return [_Reader(parts[part], rows, processor.rows_of) for part, rows in rows_of_part.items()]


class _Reader:
    """The branches that one model runs, in one pass.

    Args:
        model: the model or model part that runs them.
        branches: for each branch number, the token ids that it reads in every row.
        name: the argument, for error messages.
    """

    def __init__(self, model: Any, branches: Mapping[int, list[list[int]]], name: str) -> None:
        self.model = model
        self.name = name
        self.branches = list(branches)
        self.texts = [row for rows in branches.values() for row in rows]
        self.lengths = [len(text) for text in self.texts]
        self.rows: BranchRows | None = None

    def check_length(self, new: int) -> None:
        """Refuse texts that the model cannot read after ``new`` tokens were written."""
        branch_inputs.check_lengths(self.model, self.lengths, self.name, new + 1)

    def start(self, ids: Tensor, written: list[list[int]]) -> Tensor:
        """Read the prompts and the written tokens; return logits (rows, V)."""
        count = len(self.branches)
        if adapter(self.model).is_encoder_decoder:
            rows, logits = read_branch(self.model, self.texts, ids.repeat(count, 1))
        else:
            texts = [text + new for text, new in zip(self.texts, written * count, strict=True)]
            rows, logits = read_branch(self.model, texts, chunking=FITTING)
        self.rows = BranchRows(rows, self.branches)
        self.rows.run_fast()
        return logits[:, -1]

    def resume(self, ids: Tensor, order: Tensor | None, columns: int, width: int) -> Tensor | None:
        """Read the ids after the first ``columns``; None if the cache cannot drop the others of ``width`` columns."""
        assert self.rows is not None
        if order is not None:
            self.rows.select(order, len(order))
        if not self.rows.crop(width - columns):
            return None
        new = ids[:, columns:].to(adapter(self.model).device)
        return torch.cat([logits[:, -1] for _, logits in self.rows.forward(new)])


def _needs_prompt(guidance: BranchGuidance) -> str:
    return (
        f"guidance {guidance.name!r} reads the prompt again, and a processor of an encoder-decoder only receives the "
        "decoder's tokens; use textguide.generate"
    )


def _copies(ids: Tensor, guidance: BranchGuidance, call: GenerateCall | None) -> int:
    """The number of adjacent rows of ``ids`` (R, T) per prompt, as for samples and beams."""
    if call is not None and call.prompts is not None:
        return max(1, ids.shape[0] // call.prompts)
    # Called without `generate`: rows are copies if there are fewer branch prompts, and the ids repeat accordingly.
    prompts = [_per_row(branch) for branch in guidance.branches]
    counts = [len(rows) for rows in prompts if rows is not None]
    if not counts or ids.shape[0] % counts[0]:
        return 1
    copies = ids.shape[0] // counts[0]
    grouped = ids.view(counts[0], copies, -1)
    return copies if bool((grouped == grouped[:, :1]).all()) else 1


def _per_row(branch: Branch) -> tuple[Any, ...] | None:
    """The prompts or edits of a branch for each row; None if they are the same for all rows."""
    if isinstance(branch.edit, tuple):
        return branch.edit
    return branch.prompt if isinstance(branch.prompt, tuple) and per_row(branch.prompt) else None


def prompt_rows(ids: Tensor, call: GenerateCall | None, config: Any) -> branch_inputs.Rows:
    """The prompts (R, T) of a run without their padding.

    Args:
        call: the ``generate`` call, whose attention mask defines the padding. If None, tokens at the beginning that
            equal the padding token count as padding, unless that token also begins or ends texts.
        config: the model's generation configuration.

    Raises:
        ValueError: it is unclear whether tokens are padding.
    """
    if call is not None:
        mask = call.attention_mask
        if mask is not None and mask.shape[-1] == ids.shape[1] and len(ids) % len(mask) == 0:
            # With beams, `generate` repeats prompts after it made the mask.
            return branch_inputs.without_padding(ids, mask.repeat_interleave(len(ids) // len(mask), dim=0))
        if mask is None:
            return branch_inputs.without_padding(ids, None)
    rows = ids.tolist()
    pad = getattr(config, "pad_token_id", None)
    ends = getattr(config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    if pad is not None and pad in (getattr(config, "bos_token_id", None), *ends):
        _check_begins(rows, pad)
        return rows
    return [row[_padding(row, pad) :] for row in rows]


def _padding(row: Sequence[int], pad: int | None) -> int:
    """The number of tokens that pad a row on the left."""
    return next((place for place, token in enumerate(row) if token != pad), len(row) - 1)


def _check_begins(rows: Sequence[Sequence[int]], pad: int) -> None:
    """Refuse rows if only some of them begin with ``pad``: the longest row of a padded batch has no padding."""
    padded = [number for number, row in enumerate(rows) if row[0] == pad]
    if padded and len(padded) < len(rows):
        raise ValueError(
            f"input_ids[{padded[0]}] begins with token {pad}, which pads and also begins or ends texts, and there is "
            "no attention mask outside of model.generate; call model.generate with attention_mask=, or use another "
            "padding token"
        )
