"""Rows on which tokens are masked and filled: prompts, targets and padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoisers import Denoiser


@dataclass
class Canvas:
    """A batch of texts in which some positions are to be filled.

    Rows are padded on the right, so that every row keeps the positions it has alone, whatever is batched with it.

    Attributes:
        ids: (B, L).
        attention: bool (B, L), False on padding.
        given: bool (B, L): text that was there from the start, without the frame.
        target: bool (B, L): positions to fill.
        block: (B, L): number of the block that a target position belongs to; −1 elsewhere.
    """

    ids: Tensor
    attention: Tensor
    given: Tensor
    target: Tensor
    block: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def pick(self, rows: Tensor) -> Canvas:
        """These rows alone."""
        return Canvas(self.ids[rows], self.attention[rows], self.given[rows], self.target[rows], self.block[rows])

    def masked(self, mask_id: int) -> Tensor:
        """Positions still to fill, bool (B, L)."""
        return self.target & (self.ids == mask_id)

    def targets(self, row: int) -> list[int]:
        """The tokens of the target positions of a row, in order."""
        return [int(token) for token in self.ids[row][self.target[row]]]

    def text_ids(self, row: int) -> list[int]:
        """Given and filled tokens of a row in order, without frame and padding."""
        return [int(token) for token in self.ids[row][self.given[row] | self.target[row]]]


def for_generation(model: Denoiser, prompts: Sequence[Sequence[int]], gen_length: int, block_length: int) -> Canvas:
    """Each prompt followed by ``gen_length`` masks, in blocks of ``block_length``.

    Raises:
        ValueError: a row is longer than the model reads.
    """
    rows = [[*prompt, *[None] * gen_length] for prompt in prompts]
    return lay_out(model, rows, block_length, f"gen_length={gen_length}")


def for_infilling(model: Denoiser, texts: Sequence[Sequence[int]], block_length: int | None = None) -> Canvas:
    """Texts whose mask tokens are to be filled.

    Raises:
        ValueError: a text holds no mask token, or is longer than the model reads.
    """
    rows = [[None if token == model.mask_id else token for token in text] for text in texts]
    for number, row in enumerate(rows):
        if None not in row:
            token = getattr(model.tokenizer, "mask_token", None) or f"the token {model.mask_id}"
            raise ValueError(f"texts[{number}] holds no mask; write {token} where something is to be filled in")
    return lay_out(model, rows, block_length or max(map(len, rows)), "the text")


def lay_out(model: Denoiser, rows: Sequence[Sequence[int | None]], block_length: int, what: str) -> Canvas:
    """Rows in which None stands for a position to fill; ``what`` names them where they are too long."""
    frame = len(model.prefix_ids) + len(model.suffix_ids)
    length = max(len(row) for row in rows) + frame
    if model.max_length is not None and length > model.max_length:
        number = max(range(len(rows)), key=lambda n: len(rows[n]))
        raise ValueError(
            f"row {number} has {length} tokens with {what}, and the model reads {model.max_length}; shorten it, "
            "or fill fewer tokens"
        )
    shape = (len(rows), length)
    ids = torch.full(shape, model.pad_id)
    attention, given, target = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
    block = torch.full(shape, -1)
    start = len(model.prefix_ids)
    for n, row in enumerate(rows):
        whole = [*model.prefix_ids, *[model.mask_id if t is None else t for t in row], *model.suffix_ids]
        ids[n, : len(whole)] = torch.tensor(whole)
        attention[n, : len(whole)] = True
        wanted = torch.tensor([token is None for token in row], dtype=torch.bool)
        target[n, start : start + len(row)] = wanted
        given[n, start : start + len(row)] = ~wanted
        blocks = (wanted.cumsum(0) - 1) // block_length
        if model.block_size is not None and wanted.any():  # the blocks of the model, counted from the row's beginning
            blocks = (start + torch.arange(len(row))) // model.block_size
            blocks = blocks - blocks[wanted].min()
        block[n, start : start + len(row)] = torch.where(wanted, blocks, -1)
    device = model.device
    return Canvas(*(tensor.to(device) for tensor in (ids, attention, given, target, block)))
