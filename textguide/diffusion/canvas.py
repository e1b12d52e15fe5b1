"""Rows of tokens in which some positions are masked and filled: prompts, targets and padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoisers import Denoiser

Row = list[int | None]
"""Token ids of a text; None at positions that are to be filled."""


@dataclass
class Canvas:
    """A batch of texts in which some positions are to be filled.

    Rows are padded on the right, so that every row keeps the positions that it has alone, whatever is batched with it.

    Attributes:
        ids: token ids, (B, L).
        attention: False on padding, bool (B, L).
        given: text that was there from the start, without the frame, bool (B, L).
        target: positions to fill, bool (B, L).
        block: number of the block that a target position belongs to, (B, L); −1 elsewhere.
    """

    ids: Tensor
    attention: Tensor
    given: Tensor
    target: Tensor
    block: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def pick(self, rows: Tensor) -> Canvas:
        """Only these rows."""
        return Canvas(self.ids[rows], self.attention[rows], self.given[rows], self.target[rows], self.block[rows])

    def masked(self, mask_id: int) -> Tensor:
        """Positions that are still to be filled, bool (B, L)."""
        return self.target & (self.ids == mask_id)

    def targets(self, row: int) -> list[int]:
        """The tokens at the target positions of a row, in order."""
        return [int(token) for token in self.ids[row][self.target[row]]]

    def text_ids(self, row: int) -> list[int]:
        """The given and the filled tokens of a row in order, without frame and padding."""
        return [int(token) for token in self.ids[row][self.given[row] | self.target[row]]]


def for_generation(model: Denoiser, prompts: Sequence[Sequence[int]], length: int, block_length: int) -> Canvas:
    """Each prompt followed by ``length`` masks, in blocks of ``block_length``.

    Raises:
        ValueError: a row is longer than the model can read.
    """
    rows: list[Row] = [[*prompt, *[None] * length] for prompt in prompts]
    return lay_out(model, rows, block_length, f"max_new_tokens={length}")


def rows_to_infill(model: Denoiser, texts: Sequence[Sequence[int]]) -> list[Row]:
    """Texts as rows, with None instead of their mask tokens.

    Raises:
        ValueError: a text has no mask token.
    """
    rows: list[Row] = [[None if token == model.mask_id else token for token in text] for text in texts]
    for number, row in enumerate(rows):
        if None not in row:
            token = getattr(model.tokenizer, "mask_token", None) or f"the token {model.mask_id}"
            raise ValueError(f"texts[{number}] has no mask; write {token} where something is to be filled in")
    return rows


def for_infilling(model: Denoiser, texts: Sequence[Sequence[int]]) -> Canvas:
    """Texts whose mask tokens are to be filled, each as one block.

    Raises:
        ValueError: a text has no mask token, or is longer than the model can read.
    """
    rows = rows_to_infill(model, texts)
    return lay_out(model, rows, max(map(len, rows)), "the text")


def check_length(model: Denoiser, rows: Sequence[Row], what: str) -> None:
    """Refuse rows that are longer than the model can read.

    Args:
        what: what rows consist of besides the prompt, for the message.

    Raises:
        ValueError: one is; the message names the longest.
    """
    frame = len(model.prefix_ids) + len(model.suffix_ids)
    number = max(range(len(rows)), key=lambda n: len(rows[n]))
    length = len(rows[number]) + frame
    if model.max_length is not None and length > model.max_length:
        raise ValueError(
            f"row {number} has {length} tokens with {what}, and the model reads {model.max_length}; shorten it, "
            "or fill fewer tokens"
        )


def lay_out(model: Denoiser, rows: Sequence[Row], block_length: int, what: str) -> Canvas:
    """Rows as a canvas, framed and padded.

    Args:
        block_length: masks per block; ignored for models whose attention is causal between blocks of their own size.
        what: see :func:`check_length`.

    Raises:
        ValueError: a row is longer than the model can read.
    """
    check_length(model, rows, what)
    start = len(model.prefix_ids)
    shape = (len(rows), max(len(row) for row in rows) + start + len(model.suffix_ids))
    ids = torch.full(shape, model.pad_id)
    attention = torch.zeros(shape, dtype=torch.bool)
    given = torch.zeros(shape, dtype=torch.bool)
    target = torch.zeros(shape, dtype=torch.bool)
    block = torch.full(shape, -1)
    for n, row in enumerate(rows):
        framed = [*model.prefix_ids, *[model.mask_id if t is None else t for t in row], *model.suffix_ids]
        ids[n, : len(framed)] = torch.tensor(framed)
        attention[n, : len(framed)] = True
        masks = torch.tensor([token is None for token in row], dtype=torch.bool)
        inside = slice(start, start + len(row))
        target[n, inside] = masks
        given[n, inside] = ~masks
        block[n, inside] = torch.where(masks, _blocks(model, masks, block_length), -1)
    device = model.device
    return Canvas(ids.to(device), attention.to(device), given.to(device), target.to(device), block.to(device))


def _blocks(model: Denoiser, masks: Tensor, block_length: int) -> Tensor:
    """The block of each position of a row without its frame, (L,); only those of the ``masks`` have a meaning."""
    if model.block_size is not None and masks.any():
        # The model's own blocks are counted from the beginning of the framed row.
        blocks = (len(model.prefix_ids) + torch.arange(len(masks))) // model.block_size
        return blocks - blocks[masks].min()
    return (masks.cumsum(0) - 1) // block_length


def count_blocks(model: Denoiser, rows: Sequence[Row], length: int, block_length: int) -> int:
    """The blocks of the row that has the most, if each row ends with ``length`` masks."""
    size = model.block_size
    if size is None:
        return length // block_length
    counts = []
    for row in rows:
        end = len(model.prefix_ids) + len(row)
        counts.append((end - 1) // size - (end - length) // size + 1)
    return max(counts)
