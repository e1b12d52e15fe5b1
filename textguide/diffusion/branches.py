"""What the branches of a guidance read besides the canvas: other texts around the same positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..engine.branch_inputs import check_templates, expand, with_system
from ..guidance.algebra import log_softmax
from ..guidance.base import SELF, Branch, BranchGuidance
from ..guidance.edits import Edit
from ..guidance.prompts import Prompt, per_row
from .caching import CachedReader, Caching, Reading
from .canvas import Canvas, Row, lay_out
from .denoisers import Denoiser, denoiser

NO_BLOCK = 1 << 30


@dataclass
class BranchLogProbs:
    """Log-probabilities of the branches at the N requested positions, in row-major order.

    Attributes:
        cond: those of the conditional branch, (N, V).
        others: those of the extra branches, (b, M, V), at the M positions of the rows in which they ran.
        ran: the rows in which they ran, bool (B,).
        remasked: positions that A-CFG's branch read as masks, bool (B, L).
        certainty: probability of the most likely token at each position, by which these were chosen, (B, L); None if
            none were.
    """

    cond: Tensor
    others: Tensor
    ran: Tensor
    remasked: Tensor
    certainty: Tensor | None = None


class BranchReader(Protocol):
    """Runs the branches of a guidance on a canvas."""

    def read(self, canvas: Canvas, rows: Tensor, positions: Tensor, active: Tensor) -> BranchLogProbs:
        """Log-probabilities of all branches.

        Args:
            canvas: the rows as they are now.
            rows: the numbers of these rows in the batch, (B,).
            positions: masked positions whose distributions are needed, bool (B, L).
            active: rows whose extra branches are needed, bool (B,).
        """


@dataclass
class _BranchRows:
    """The rows that one branch reads in this step.

    Attributes:
        number: of the branch, 0 for the conditional one.
        ids: token ids, (B, L).
        attention: False on padding, bool (B, L).
        positions: positions whose distribution is needed, bool (B, L).
    """

    number: int
    ids: Tensor
    attention: Tensor
    positions: Tensor


class BranchCanvases:
    """Branches that read other texts, in this or another denoiser, around the positions of the canvas.

    All branches of one denoiser are read in one forward pass; those of the decoded model together with the canvas
    itself.

    Args:
        denoisers: by the names that branches use, the decoded one under ``SELF``.
        canvas: the batch before anything is filled.
        guidance: whose branches these are.
        texts: what each branch reads, per row; see :func:`branch_texts`.
        cache: what is kept between two passes; None: nothing.

    Attributes:
        watch: called with the logits of a pass that used kept keys, those of a pass without, and the requested
            positions; None: the second pass is not run.

    Raises:
        ValueError: a text is longer than its model can read, or a model does not support the cache.
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
        self._canvases = [
            (branch.model, _branch_canvas(denoisers, branch.model, rows))
            for branch, rows in zip(branches, texts, strict=True)
        ]
        self._cached: dict[str, CachedReader] = {}
        if cache is not None:
            self._cached = cache.start(denoisers, canvas, self._canvases)
        self.watch: Callable[[Tensor, Tensor, Tensor], None] | None = None

    def read(self, canvas: Canvas, rows: Tensor, positions: Tensor, active: Tensor) -> BranchLogProbs:
        """One forward pass per denoiser."""
        by_model = {SELF: [_BranchRows(0, canvas.ids, canvas.attention, positions)]}
        if active.any():
            for number, (name, whole) in enumerate(self._canvases, start=1):
                branch = self._with_tokens_of(canvas, rows, positions, active, number, name, whole)
                by_model.setdefault(name, []).append(branch)
        blocks = torch.where(positions, canvas.block, NO_BLOCK).amin(-1)
        log_probs: dict[int, Tensor] = {}
        for name, branches in by_model.items():
            logits = self._logits(name, branches, (rows, blocks), active)
            parts = logits.split([len(branch.ids) for branch in branches])
            for branch, part in zip(branches, parts, strict=True):
                needed = part[:, : branch.positions.shape[1]][branch.positions]
                log_probs[branch.number] = log_softmax(needed).to(canvas.ids.device)
        cond, *others = (log_probs[number] for number in sorted(log_probs))
        for (name, _), other in zip(self._canvases, others, strict=False):
            _check_vocabulary(name, other.shape[-1], cond.shape[-1])
        if others:
            stacked = torch.stack(others)
        else:
            needed = int(positions[active][canvas.target[active]].sum())
            stacked = cond.new_zeros(0, needed, cond.shape[-1])
        return BranchLogProbs(cond, stacked, active, torch.zeros_like(positions))

    def _with_tokens_of(
        self,
        canvas: Canvas,
        rows: Tensor,
        positions: Tensor,
        active: Tensor,
        number: int,
        name: str,
        whole: Canvas,
    ) -> _BranchRows:
        """The active rows of a branch, with the tokens that have been filled on the canvas by now."""
        branch = whole.pick(rows[active].to(whole.ids.device))
        filled = canvas.ids[active][canvas.target[active]]
        needed = positions[active][canvas.target[active]]
        ids = branch.ids.clone()
        ids[branch.target] = _translate_mask(filled, self.denoisers[SELF], self.denoisers[name]).to(ids.device)
        branch_positions = torch.zeros_like(branch.target)
        branch_positions[branch.target] = needed.to(ids.device)
        return _BranchRows(number, ids, branch.attention, branch_positions)

    def _logits(
        self, name: str, branches: list[_BranchRows], conditional: tuple[Tensor, Tensor], active: Tensor
    ) -> Tensor:
        """Logits of one denoiser for all its branches, one below the other.

        Args:
            conditional: row numbers of the conditional branch and the blocks that these rows fill.
        """
        model = self.denoisers[name]
        ids, attention = _stack(model, branches)
        if name not in self._cached:
            return model(ids, attention)[0]
        slots: list[tuple[int, int]] = []
        blocks = []
        for branch in branches:
            numbers, own_blocks = conditional
            if branch.number != 0:
                numbers = numbers[active]
                own_blocks = own_blocks[active]
            slots += [(branch.number, int(row)) for row in numbers]
            blocks.append(own_blocks)
        width = ids.shape[1]
        positions = torch.cat([pad(one.positions, (0, width - one.positions.shape[1])) for one in branches])
        reading = Reading(ids, attention, positions, slots, torch.cat(blocks).to(ids.device))
        logits = self._cached[name].read(reading)
        if self.watch is not None:
            passes = model.passes
            rows = model.rows
            tokens = model.tokens
            self.watch(logits, model(ids, attention)[0], positions)
            model.passes, model.rows, model.tokens = passes, rows, tokens  # the comparison is not counted
        return logits


def branch_denoisers(
    model: Denoiser, guidance: BranchGuidance | None, models: Mapping[str, Any] | None
) -> dict[str, Denoiser]:
    """The denoisers that the branches of ``guidance`` run, by name; ``model`` itself under ``SELF``.

    Args:
        models: masked diffusion models with the tokens of ``model``, or the :class:`Denoiser` of one, by name.

    Raises:
        ValueError: a branch names a model that was not given, or one of them is not a masked diffusion model.
    """
    denoisers = {SELF: model}
    given = models or {}
    for branch in guidance.branches if guidance is not None else ():
        if branch.model in denoisers:
            continue
        if branch.model not in given:
            known = ", ".join(map(repr, given)) or "none"
            raise ValueError(f"branch model {branch.model!r} is not among models= (given: {known})")
        denoisers[branch.model] = denoiser(given[branch.model], model.tokenizer)
    return denoisers


def canvas_rows(canvas: Canvas) -> list[Row]:
    """The rows of a canvas in which nothing is filled yet, without frame and padding."""
    rows: list[Row] = []
    for ids, given, target in zip(canvas.ids.tolist(), canvas.given.tolist(), canvas.target.tolist(), strict=True):
        row: Row = []
        for token, is_given, is_target in zip(ids, given, target, strict=True):
            if is_target:
                row.append(None)
            elif is_given:
                row.append(token)
        rows.append(row)
    return rows


def branch_texts(
    model: Denoiser,
    guidance: BranchGuidance | None,
    rows: Sequence[Row],
    prompts: Sequence[Prompt] | None = None,
    *,
    infilling: bool = False,
) -> list[list[Row]]:
    """What each extra branch of ``guidance`` reads, per row.

    A branch without a prompt reads masks instead of everything that is given. Another prompt replaces the row's own,
    before the same masks. When masks inside of texts are filled, another text contains the masks itself, as many as
    the row has; an edit that keeps the number of tokens changes what is given around the masks.

    Args:
        rows: what the conditional branch reads.
        prompts: the same in canonical form; needed if a branch replaces the system prompt.

    Raises:
        ValueError: the prompts of a branch do not match the batch, or have another number of masks.
    """
    branches = guidance.branches if guidance is not None else ()
    return [_texts_of_branch(model, branch, rows, prompts, infilling) for branch in branches]


def _texts_of_branch(
    model: Denoiser, branch: Branch, rows: Sequence[Row], prompts: Sequence[Prompt] | None, infilling: bool
) -> list[Row]:
    if branch.same_prompt:
        return [list(row) for row in rows]
    if branch.prompt is None and branch.system is None and branch.edit is None:
        return [[None if token is None else model.mask_id for token in row] for row in rows]
    texts = _other_texts(model, branch, rows, prompts, infilling)
    if not infilling:
        return [[*text, *[None] * row.count(None)] for text, row in zip(texts, rows, strict=True)]
    return [_with_masks(model, number, *pair) for number, pair in enumerate(zip(texts, rows, strict=True))]


def _other_texts(
    model: Denoiser, branch: Branch, rows: Sequence[Row], prompts: Sequence[Prompt] | None, infilling: bool
) -> list[list[int]]:
    """The token ids of a branch with another text than the row's own, without the masks after it."""
    if branch.edit is not None:
        edits = expand(list(branch.edit) if isinstance(branch.edit, tuple) else [branch.edit], len(rows), "context")
        originals = list(prompts) if prompts is not None else [None] * len(rows)
        return [_edited(model, *one, infilling) for one in zip(edits, rows, originals, strict=True)]
    if branch.system is not None:
        if prompts is None:
            raise ValueError("a system prompt needs the prompts as texts or chats; use textguide.diffusion.generate")
        chats = [with_system(prompt, branch.system) for prompt in prompts]
        check_templates(prompts, chats, "negative_system")
        return [model.encode(chat) for chat in chats]
    assert branch.prompt is not None
    given: Sequence[Any] = branch.prompt if per_row(branch.prompt) else [branch.prompt]
    if prompts is not None:
        check_templates(prompts, expand(list(given), len(rows)), "negative_prompt")
    return expand([model.encode(prompt) for prompt in given], len(rows))


def _edited(model: Denoiser, edit: Edit, row: Row, prompt: Prompt | None, infilling: bool) -> list[int]:
    known = [token for token in row if token is not None]
    if not infilling:
        return edit.apply(known, prompt, model.encode)
    whole = [model.mask_id if token is None else token for token in row]
    edited = edit.apply(whole, prompt, model.encode)
    if len(edited) != len(whole):
        return edited
    # An edit token by token: applied to what is given only, so that the masks stay at their positions.
    changed = iter(edit.apply(known, prompt, model.encode)) if known else iter(())
    return [model.mask_id if token is None else next(changed) for token in row]


def _with_masks(model: Denoiser, number: int, text: list[int], row: Row) -> Row:
    """``text`` with None at its masks."""
    if text.count(model.mask_id) != row.count(None):
        token = getattr(model.tokenizer, "mask_token", None) or f"the token {model.mask_id}"
        raise ValueError(
            f"texts[{number}] has {row.count(None)} masks, and the text that a branch reads instead has "
            f"{text.count(model.mask_id)}; write {token} there wherever the text has one"
        )
    return [None if token == model.mask_id else token for token in text]


def _branch_canvas(denoisers: Mapping[str, Denoiser], name: str, rows: Sequence[Row]) -> Canvas:
    own_mask = denoisers[SELF].mask_id
    model = denoisers[name]
    translated: list[Row] = [[model.mask_id if token == own_mask else token for token in row] for row in rows]
    return lay_out(model, translated, 1, "what a branch reads")


def _translate_mask(tokens: Tensor, model: Denoiser, other: Denoiser) -> Tensor:
    """Tokens of ``model`` with the mask token of ``other``."""
    if model.mask_id == other.mask_id:
        return tokens
    return tokens.masked_fill(tokens == model.mask_id, other.mask_id)


def _check_vocabulary(name: str, size: int, expected: int) -> None:
    if size != expected:
        raise ValueError(
            f"model {name!r} has {size} tokens in its vocabulary and the denoiser {expected}; their distributions "
            "cannot be combined: use models that share a tokenizer"
        )


def _stack(model: Denoiser, branches: Sequence[_BranchRows]) -> tuple[Tensor, Tensor]:
    """Ids and attention of branches one below the other, padded on the right to one length."""
    length = max(branch.ids.shape[1] for branch in branches)
    ids = [pad(one.ids, (0, length - one.ids.shape[1]), value=model.pad_id) for one in branches]
    attention = [pad(one.attention, (0, length - one.attention.shape[1])) for one in branches]
    return torch.cat(ids), torch.cat(attention)
