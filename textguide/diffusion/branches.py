"""What the branches of a guidance read beside the canvas: other texts around the same positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..engine.branch_inputs import expand, with_system
from ..guidance.algebra import log_softmax
from ..guidance.base import SELF, Branch, BranchGuidance
from ..guidance.edits import Edit
from ..guidance.prompts import Prompt, per_row
from .caching import Caching, Kept, Reading
from .canvas import Canvas, lay_out
from .denoisers import Denoiser, denoiser

_Asked = tuple[int, Tensor, Tensor, Tensor]
"""Number of a branch, its token ids, its attention, and the positions that it is asked about, (B, L) each."""

Row = list[int | None]
"""Token ids of a text; None where it is filled."""


@dataclass
class Passes:
    """What the branches say about the masked positions that were asked for, in row-major order (N of them).

    Attributes:
        cond: log-probabilities of the conditional branch, (N, V).
        others: those of the extra branches, (b, M, V), at the M positions of the rows in which they ran.
        ran: the rows in which they ran, bool (B,).
        remasked: positions that A-CFG's branch read as masks, bool (B, L).
        certainty: by which these were chosen: the probability of the likeliest token at each position, (B, L); None
            where none were.
    """

    cond: Tensor
    others: Tensor
    ran: Tensor
    remasked: Tensor
    certainty: Tensor | None = None


class Reader(Protocol):
    """Runs the branches of a guidance on a canvas."""

    def read(self, canvas: Canvas, rows: Tensor, where: Tensor, active: Tensor) -> Passes:
        """What every branch says at ``where``.

        Args:
            canvas: the rows as they are now.
            rows: which rows of the batch they are, (B,).
            where: masked positions, bool (B, L).
            active: rows whose extra branches are wanted, bool (B,).
        """


class Laid:
    """Branches that read other texts, in this or another denoiser, around the positions that the canvas has.

    All branches of one denoiser ride in one forward pass; those of the decoded one, with the canvas itself.

    Args:
        denoisers: by the names of the branches, the decoded one under ``SELF``.
        canvas: the batch as it was before anything was filled.
        guidance: whose branches these are.
        texts: what each branch reads, row by row; see :func:`texts_of`.
        cache: what is kept between two passes; None: nothing.

    Attributes:
        watch: is told the logits of a pass that kept something, those of one that did not, and the positions that
            were asked for; None: the second is not run.

    Raises:
        ValueError: a text is longer than its model reads, or the branches leave nothing to keep.
    """

    def __init__(
        self,
        denoisers: Mapping[str, Denoiser],
        canvas: Canvas,
        guidance: BranchGuidance | None,
        texts: Sequence[Sequence[Row]],
        cache: Caching | None = None,
    ) -> None:
        self.denoisers = denoisers
        branches = guidance.branches if guidance is not None else ()
        self._laid = [
            (branch.model, _lay(denoisers, branch.model, rows)) for branch, rows in zip(branches, texts, strict=True)
        ]
        self._kept: dict[str, Kept] = {} if cache is None else cache.start(denoisers, canvas, self._laid)
        self.watch: Callable[[Tensor, Tensor, Tensor], None] | None = None

    def read(self, canvas: Canvas, rows: Tensor, where: Tensor, active: Tensor) -> Passes:
        """One forward pass for each denoiser."""
        written, inside = canvas.ids[active][canvas.target[active]], where[active][canvas.target[active]]
        passes: dict[str, list[_Asked]] = {SELF: [(0, canvas.ids, canvas.attention, where)]}
        block = torch.where(where, canvas.block, 1 << 30).amin(-1)
        for number, (name, laid) in enumerate(self._laid if active.any() else (), start=1):
            there = laid.pick(rows[active].to(laid.ids.device))
            ids, asked = there.ids.clone(), torch.zeros_like(there.target)
            ids[there.target] = _translated(written, self.denoisers[SELF], self.denoisers[name]).to(ids.device)
            asked[there.target] = inside.to(ids.device)
            passes.setdefault(name, []).append((number, ids, there.attention, asked))
        found: dict[int, Tensor] = {}
        for name, several in passes.items():
            parts = self._logits(name, several, (rows, block), active).split([len(ids) for _, ids, _, _ in several])
            for (number, _, _, asked), logits in zip(several, parts, strict=True):
                found[number] = log_softmax(logits[:, : asked.shape[1]][asked]).to(canvas.ids.device)
        cond, *others = (found[number] for number in sorted(found))
        for (name, _), other in zip(self._laid, others, strict=False):
            _check_vocabulary(name, other.shape[-1], cond.shape[-1])
        stacked = torch.stack(others) if others else cond.new_zeros(0, int(inside.sum()), cond.shape[-1])
        return Passes(cond, stacked, active, torch.zeros_like(where))

    def _logits(self, name: str, several: list[_Asked], every: tuple[Tensor, Tensor], active: Tensor) -> Tensor:
        """Of one denoiser; ``every`` are the rows of the conditional branch and the blocks that they fill."""
        model = self.denoisers[name]
        ids, attention = _stack(model, [(ids, attention) for _, ids, attention, _ in several])
        if name not in self._kept:
            return model(ids, attention)[0]
        of = [torch.stack(every, -1) if number == 0 else torch.stack(every, -1)[active] for number, *_ in several]
        slots = [(number, int(row)) for (number, *_), one in zip(several, of, strict=True) for row in one[:, 0]]
        width, pad = ids.shape[1], torch.nn.functional.pad
        asked = torch.cat([pad(asked, (0, width - asked.shape[1])) for *_, asked in several])
        logits = self._kept[name].read(Reading(ids, attention, asked, slots, torch.cat(of)[:, 1].to(ids.device)))
        if self.watch is not None:
            before = model.passes, model.rows, model.tokens
            self.watch(logits, model(ids, attention)[0], asked)
            model.passes, model.rows, model.tokens = before
        return logits


def denoisers_of(
    model: Denoiser, guidance: BranchGuidance | None, models: Mapping[str, Any] | None
) -> dict[str, Denoiser]:
    """The denoisers that the branches of ``guidance`` run, by name; ``model`` itself under ``SELF``.

    Args:
        models: masked diffusion models with the tokens of ``model``, or the :class:`Denoiser` of one, by name.

    Raises:
        ValueError: a branch names a model that is not given, or one that is given is no masked diffusion model.
    """
    found = {SELF: model}
    for branch in guidance.branches if guidance is not None else ():
        if branch.model in found:
            continue
        if branch.model not in (models or {}):
            known = ", ".join(map(repr, models or {})) or "none"
            raise ValueError(f"branch model {branch.model!r} is not among models= (given: {known})")
        found[branch.model] = denoiser((models or {})[branch.model], model.tokenizer)
    return found


def rows_of(canvas: Canvas) -> list[Row]:
    """The rows of a canvas in which nothing was filled yet, without frame and padding."""
    every = zip(canvas.ids.tolist(), canvas.given.tolist(), canvas.target.tolist(), strict=True)
    return [
        [None if wanted else token for token, known, wanted in zip(*row, strict=True) if known or wanted]
        for row in every
    ]


def texts_of(
    model: Denoiser,
    guidance: BranchGuidance | None,
    rows: Sequence[Row],
    prompts: Sequence[Prompt] | None = None,
    *,
    infilling: bool = False,
) -> list[list[Row]]:
    """What each extra branch of ``guidance`` reads, row by row.

    A branch without a prompt reads masks in place of everything that is given. Another prompt stands in place of the
    row's own, in front of the same masks. When texts are filled in, another text holds the masks itself, as many as
    the row has; an edit that keeps the number of tokens changes what is given around the masks.

    Args:
        rows: what the conditional branch reads.
        prompts: the same as it was given, in canonical form; needed where a branch swaps the system prompt.

    Raises:
        ValueError: the prompts of a branch do not fit the batch, or hold another number of masks.
    """
    return [
        _texts(model, branch, rows, prompts, infilling)
        for branch in (guidance.branches if guidance is not None else ())
    ]


def _texts(
    model: Denoiser, branch: Branch, rows: Sequence[Row], prompts: Sequence[Prompt] | None, infilling: bool
) -> list[Row]:
    if branch.same_prompt:
        return [list(row) for row in rows]
    if branch.prompt is None and branch.system is None and branch.edit is None:
        return [[None if token is None else model.mask_id for token in row] for row in rows]
    if branch.edit is not None:
        each = expand(list(branch.edit) if isinstance(branch.edit, tuple) else [branch.edit], len(rows), "context")
        whole = list(prompts) if prompts is not None else [None] * len(rows)
        found = [_edited(model, *one, infilling) for one in zip(each, rows, whole, strict=True)]
    elif branch.system is not None:
        if prompts is None:
            raise ValueError("a system prompt needs the prompts as texts or chats; use textguide.diffusion.generate")
        found = [model.encode(with_system(prompt, branch.system)) for prompt in prompts]
    else:
        assert branch.prompt is not None
        given: Sequence[Any] = branch.prompt if per_row(branch.prompt) else [branch.prompt]
        found = expand([model.encode(prompt) for prompt in given], len(rows))
    if not infilling:
        return [[*text, *[None] * row.count(None)] for text, row in zip(found, rows, strict=True)]
    return [_with_masks(model, *one) for one in zip(range(len(rows)), found, rows, strict=True)]


def _edited(model: Denoiser, edit: Edit, row: Row, prompt: Prompt | None, infilling: bool) -> list[int]:
    known = [token for token in row if token is not None]
    if not infilling:
        return edit.apply(known, prompt, model.encode)
    whole = [model.mask_id if token is None else token for token in row]
    found = edit.apply(whole, prompt, model.encode)
    if len(found) != len(whole):
        return found
    # Token for token: the masks stay where they are.
    changed = iter(edit.apply(known, prompt, model.encode)) if known else iter(())
    return [model.mask_id if token is None else next(changed) for token in row]


def _with_masks(model: Denoiser, number: int, text: list[int], row: Row) -> Row:
    if text.count(model.mask_id) != row.count(None):
        token = getattr(model.tokenizer, "mask_token", None) or f"the token {model.mask_id}"
        raise ValueError(
            f"texts[{number}] has {row.count(None)} masks, and what a branch reads in its place has "
            f"{text.count(model.mask_id)}; write {token} there wherever the text has one"
        )
    return [None if token == model.mask_id else token for token in text]


def _lay(denoisers: Mapping[str, Denoiser], name: str, rows: Sequence[Row]) -> Canvas:
    mine, model = denoisers[SELF].mask_id, denoisers[name]
    own = [[model.mask_id if token == mine else token for token in row] for row in rows]
    return lay_out(model, own, 1, "what a branch reads")


def _translated(tokens: Tensor, mine: Denoiser, theirs: Denoiser) -> Tensor:
    """Tokens with the mask of the other model in place of one's own."""
    return tokens if mine.mask_id == theirs.mask_id else tokens.masked_fill(tokens == mine.mask_id, theirs.mask_id)


def _check_vocabulary(name: str, size: int, expected: int) -> None:
    if size != expected:
        raise ValueError(
            f"model {name!r} has {size} tokens in its vocabulary and the denoiser {expected}; their distributions "
            "cannot be combined: use models that share a tokenizer"
        )


def _stack(model: Denoiser, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Batches under each other, padded on the right to one length."""
    length = max(ids.shape[1] for ids, _ in batches)
    pad = torch.nn.functional.pad
    ids = torch.cat([pad(ids, (0, length - ids.shape[1]), value=model.pad_id) for ids, _ in batches])
    return ids, torch.cat([pad(mask, (0, length - mask.shape[1])) for _, mask in batches])
