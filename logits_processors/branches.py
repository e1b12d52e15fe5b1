"""The extra branches of a run of transformers' ``generate``, which a logits processor follows by its ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from textguide.engine import branch_inputs
from textguide.engine.branch_inputs import empty_source
from textguide.engine.branch_rows import BranchRows, read_branch
from textguide.engine.caller import GenerateCall
from textguide.forward import model_views
from textguide.forward.model_adapter import adapter
from textguide.guidance import Branch, BranchGuidance, Step
from textguide.guidance.needs import Need
from textguide.guidance.prompts import per_row
from textguide.step.effect import EffectMeter

TAKEN_BACK = 32
"""How many tokens speculation may take back under a guidance that adds up what its branches gave to a text."""


class Processor(Protocol):
    """What a run is told by the processor whose it is."""

    rows_of: str
    model: Any
    tokenizer: Any
    models: Mapping[str, Any] | None
    prompts: Any
    horizon: int | None


@dataclass
class _Match:
    order: Tensor | None  # which read row each row continues; None: its own
    kept: int  # columns of the read ids that stay valid


class BranchRun:
    """The extra branches of one ``generate`` call.

    The branches that one model runs, or one part of a model, are rows of one pass, branch behind branch.
    """

    def __init__(
        self, processor: Processor, guidance: BranchGuidance, ids: Tensor, device: Any, call: GenerateCall | None
    ) -> None:
        model, horizon, name = processor.model, processor.horizon, processor.rows_of
        self.guidance = guidance
        self.prompt_length = ids.shape[1]
        self.rows = ids.shape[0]
        self.meter = EffectMeter(len(guidance.branches), device)
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        if self.is_encoder_decoder and {Need.EDIT, Need.SYSTEM} & guidance.needs:
            raise ValueError(_encoded(guidance))
        self.copies = _copies(ids, guidance, call)
        cond = prompt_rows(ids, None if self.is_encoder_decoder else call, model.generation_config)
        branches = [*guidance.branches]
        # Where the conditional branch runs the model with a change inside, it is read here as the others are.
        self.rereads = guidance.view is not None
        if self.rereads:
            branches.insert(0, Branch(same_prompt=True, view=guidance.view))
        if self.is_encoder_decoder and any(branch.same_prompt for branch in branches):
            raise ValueError(_encoded(guidance))
        empty = empty_source(model.config) if self.is_encoder_decoder else None
        prompts = None
        if processor.prompts is not None:
            given = branch_inputs.canonical_prompts(processor.prompts, None, processor.tokenizer)
            prompts = branch_inputs.expand(given, self.rows, "prompts", self.copies)
        texts = [
            branch_inputs.rows_of(branch, cond, processor.tokenizer, prompts, empty, self.copies, name)
            for branch in branches
        ]
        parts = model_views.model_parts(model, processor.models, branches)
        for branch, rows in zip(branches, texts, strict=True):
            branch_inputs.check_rows(parts[branch.model_part], rows, name, horizon or 1)
        if not self.is_encoder_decoder and not self.rereads:
            branch_inputs.warn_of_same(guidance, cond, texts, "input_ids", whole=True)
        self.readers = [
            _Reader(parts[part], {n: texts[n] for n, branch in enumerate(branches) if branch.model_part == part}, name)
            for part in dict.fromkeys(branch.model_part for branch in branches)
        ]
        # Rows may change places where every branch reads the same for them: the beams of one prompt do.
        read = [tuple(tuple(rows[row]) for rows in texts) for row in range(self.rows)]
        first = torch.tensor([read.index(one) for one in read], device=ids.device)
        self.alike = first[:, None] == first[None, :]
        self.prompt = ids
        self.seen = ids.shape[1]
        self.ids = ids[:, :0]
        self._match: _Match | None = None
        self._steps: dict[int, tuple[Tensor, Tensor]] = {}  # by the columns of ids: sums so far, and what came behind

    @property
    def has_read(self) -> bool:
        """Whether the branches have read anything."""
        return self.ids.shape[1] > 0

    def step(self, ids: Tensor, horizon: int | None) -> Step:
        """Where in the text ``ids`` stand."""
        rows = tuple(range(self.rows))
        index = ids.shape[1] - self.prompt_length
        likelihoods = self._likelihoods(ids) if self.guidance.reads_likelihoods else None
        return Step.at(index if horizon else 0, horizon or 1, rows, self.rows, self.copies, likelihoods)

    def keep(self, ids: Tensor, logp: Tensor, step: Step) -> None:
        """Remember the log-probabilities (n, R, V) behind ``ids``, where the next step adds up those of its tokens."""
        if step.likelihoods is not None:
            self._steps[ids.shape[1]] = (step.likelihoods, logp)
            self._steps.pop(ids.shape[1] - TAKEN_BACK, None)

    def _likelihoods(self, ids: Tensor) -> Tensor:
        """What every branch gave to the tokens behind the prompt, (n, R)."""
        order = None if self._match is None else self._match.order
        if order is not None:
            self._steps = {width: (sums[:, order], logp[:, order]) for width, (sums, logp) in self._steps.items()}
        if ids.shape[1] == self.prompt_length:
            return torch.zeros(1 + len(self.guidance.branches), self.rows, dtype=torch.float64, device=ids.device)
        if ids.shape[1] - 1 not in self._steps:
            raise ValueError(
                f"guidance {self.guidance.name!r} needs every step of a text, and {ids.shape[1] - self.prompt_length} "
                "tokens of it were written or taken back at once; call the processor at every token"
            )
        sums, logp = self._steps[ids.shape[1] - 1]
        chosen = ids[:, -1].to(logp.device)[None, :, None].expand(len(logp), -1, 1)
        return sums + logp.gather(-1, chosen).squeeze(-1).to(sums)

    def continues(self, ids: Tensor, one_by_one: bool = False) -> bool:
        """Whether ``ids`` may be a later step of this run; remembers how its rows follow.

        Args:
            one_by_one: a step adds one token, and more of them are another run.
        """
        if ids.shape[0] != self.rows or (ids.shape[1] <= self.prompt_length and not self.has_read):
            return False
        if one_by_one and ids.shape[1] > self.seen + 1:
            return False
        self.seen = ids.shape[1]
        read = self.ids if self.has_read else self.prompt
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
        if kept < self.prompt_length or not self.has_read:
            return False
        self._match = _Match(None, kept)
        return True

    def read(self, ids: Tensor, size: int) -> Tensor:
        """Logits (branches, R, V) of the position behind ``ids`` (R, T)."""
        match, self._match = self._match, None
        written = ids[:, self.prompt_length :].tolist()
        found: dict[int, Tensor] = {}
        for reader in self.readers:
            reader.check_length(len(written[0]))
            logits = None
            if match is not None and self.has_read:
                logits = reader.go_on(ids, match.order, match.kept, self.ids.shape[1])
            if logits is None:
                logits = reader.start(ids, written)
            if logits.shape[-1] != size:
                raise ValueError(
                    f"model= has {logits.shape[-1]} tokens in its vocabulary and the decoding model {size}; "
                    "use models that share a tokenizer"
                )
            found |= dict(zip(reader.branches, logits.split(self.rows), strict=True))
        self.ids = ids
        if not found:
            return torch.empty(0, self.rows, size, device=ids.device)
        return torch.stack([found[number].to(ids.device) for number in sorted(found)])

    def _order(self, read: Tensor, ids: Tensor) -> Any:
        """Which row of ``read`` each row of ``ids`` equals: None for its own, a LongTensor, or False for none."""
        if torch.equal(read, ids):
            return None
        same = (ids[:, None, :] == read[None, :, :]).all(dim=-1) & self.alike
        if not bool(same.any(dim=1).all()):
            return False
        if self.guidance.across_rows:
            raise ValueError(
                f"rows changed places, as beam search lets them, and guidance {self.guidance.name!r} holds rows "
                "against each other; leave num_beams out"
            )
        return same.long().argmax(dim=1)


class _Reader:
    """The branches that one model runs, in one pass.

    Args:
        model: what runs them.
        branches: what each of them reads, by its number.
        name: the argument that an error names.
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
        """Read everything: logits (rows, V)."""
        count = len(self.branches)
        if adapter(self.model).is_encoder_decoder:
            rows, logits = read_branch(self.model, self.texts, ids.repeat(count, 1))
        else:
            texts = [text + new for text, new in zip(self.texts, written * count, strict=True)]
            rows, logits = read_branch(self.model, texts)
        self.rows = BranchRows(rows, self.branches)
        self.rows.run_fast()
        return logits[:, -1]

    def go_on(self, ids: Tensor, order: Tensor | None, kept: int, width: int) -> Tensor | None:
        """Read what is new after the first ``kept`` of ``width`` columns; None if the rest cannot be taken back."""
        assert self.rows is not None
        if order is not None:
            self.rows.select(order, len(order))
        if not self.rows.crop(width - kept):
            return None
        new = ids[:, kept:].to(adapter(self.model).device)
        return torch.cat([logits[:, -1] for _, logits in self.rows.forward(new)])


def _encoded(guidance: BranchGuidance) -> str:
    return (
        f"guidance {guidance.name!r} reads the prompt again, and a processor of an encoder-decoder sees the decoder's "
        "tokens alone; use textguide.generate"
    )


def _copies(ids: Tensor, guidance: BranchGuidance, call: GenerateCall | None) -> int:
    """How often ``ids`` (R, T) holds each prompt, side by side, as samples and beams do."""
    if call is not None and call.prompts is not None:
        return max(1, ids.shape[0] // call.prompts)
    each = [len(one) for one in map(_per_row, guidance.branches) if one is not None]
    if not each or ids.shape[0] % each[0]:
        return 1
    copies = ids.shape[0] // each[0]
    alike = (ids.view(each[0], copies, -1) == ids.view(each[0], copies, -1)[:, :1]).all()
    return copies if bool(alike) else 1


def _per_row(branch: Branch) -> tuple[Any, ...] | None:
    """What a branch reads in each row, where that is not the same for all."""
    if isinstance(branch.edit, tuple):
        return branch.edit
    return branch.prompt if isinstance(branch.prompt, tuple) and per_row(branch.prompt) else None


def prompt_rows(ids: Tensor, call: GenerateCall | None, config: Any) -> branch_inputs.Rows:
    """The prompts (R, T) of a run without their padding.

    Args:
        call: the ``generate`` call, whose attention mask says what padding is; None: not known, so that tokens at the
            beginning that equal the padding token are padding.
        config: the model's generation configuration.
    """
    if call is not None:
        mask = call.attention_mask
        if mask is not None and mask.shape[-1] == ids.shape[1] and len(ids) % len(mask) == 0:
            # Beams repeat prompts after the mask was made.
            return branch_inputs.without_padding(ids, mask.repeat_interleave(len(ids) // len(mask), dim=0))
        if mask is None:
            return branch_inputs.without_padding(ids, None)
    pad = getattr(config, "pad_token_id", None)
    begin = getattr(config, "bos_token_id", None)
    rows = []
    for row in ids.tolist():
        start = next((place for place, token in enumerate(row) if token != pad), len(row) - 1)
        if start and pad == begin:  # the last of these tokens begins the text
            start -= 1
        rows.append(row[start:])
    return rows
