"""Trying a model out on a few tokens: what padding, merged caches and rows that take turns do to its answer."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import caches


class Padding(enum.Enum):
    """What left padding does to a model's answer."""

    EXACT = "rows of unlike length may be read in one pass, padded on the left"
    IN_CACHE = "prompts are read at their own lengths, and their caches may be merged with padding"
    CHANGES = "rows of unlike length need caches and passes of their own"


class Reading:
    """A row batch without its comforts, for trying a model out; for an encoder-decoder rows of its decoder."""

    def __init__(self, model: Any, rows: Sequence[Sequence[int]], cache: Any = None) -> None:
        self.model = model
        length = max(map(len, rows))
        self.mask: Tensor | None = None
        if any(len(row) < length for row in rows):
            self.mask = self._tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        self.next = self._tensor([[len(row)] for row in rows])
        self.cache = caches.new_cache(model.base) if cache is None else cache
        self.inputs: dict[str, Any] = {}
        if model.is_encoder_decoder:
            source = self._tensor([probes(model)[0]] * len(rows))
            mask = torch.ones_like(source)
            self.inputs = {"encoder_outputs": model.encode(source, mask), "attention_mask": mask}
        self.logits = torch.empty(0)
        if cache is None:
            ids = self._tensor([[0] * (length - len(row)) + list(row) for row in rows])
            counted = self.mask if self.mask is not None else torch.ones_like(ids)
            positions = (counted.cumsum(-1) - 1).masked_fill(counted == 0, 0)
            self.logits = self._read(ids, positions, True)[:, -1]

    def step(self, tokens: Sequence[Sequence[int]], keep: int = 1) -> Tensor:
        """Logits behind the newest token, (R, V), or behind the last ``keep`` > 1 tokens, (R, keep, V)."""
        ids = self._tensor(tokens)
        new = ids.shape[1]
        if self.mask is not None:
            self.mask = torch.nn.functional.pad(self.mask, (0, new), value=1)
        positions = self.next + torch.arange(new, device=ids.device)
        self.next = self.next + new
        logits = self._read(ids, positions, False, keep)
        return logits if keep > 1 else logits[:, -1]

    def _read(self, ids: Tensor, positions: Tensor, first: bool, keep: int = 1) -> Tensor:
        logits = self.model.read(
            ids, self.cache, mask=self.mask, positions=positions, keep=keep, first=first, inputs=self.inputs
        )  # fmt: skip
        return logits.float()

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, device=self.model.device)


def probes(model: Any) -> tuple[list[int], list[int], list[list[int]]]:
    """Two prompts of unlike length and the tokens that go on behind them, all of them ordinary."""
    size = model.vocab_size or 32
    config = model.base.config
    special = {value for name, value in vars(config).items() if name.endswith(("token_id", "token_index"))
               and isinstance(value, int)}  # fmt: skip
    usual = [token for token in range(size // 4, size) if token not in special] or list(range(size))
    picked = [usual[(i * 7919) % len(usual)] for i in range(12)]
    return picked[:7], picked[7:10], [[picked[10]], [picked[11]]]


def tried(model: Any) -> Padding:
    """What left padding does to the answer of ``model``, a :class:`.model_adapter.ModelAdapter`.

    Raises:
        ValueError: rows cannot take turns.
    """
    long, short, after = probes(model)
    if model.is_encoder_decoder:
        return _on_sources(model, long, short, after)
    alone = []
    for prompt, token in ((long, after[0]), (short, after[1])):
        reading = Reading(model, [prompt])
        alone.append((reading.logits, reading.step([token])))
    turns = [Reading(model, [long]), Reading(model, [short])]
    if not all(
        alike(model, one.step([token]), right[1]) for one, token, right in zip(turns, after, alone, strict=True)
    ):
        raise ValueError(
            f"{model.name} keeps state outside its cache: what one row has read is lost when another row is read, so "
            "that branches cannot take turns; guidance is not available for this architecture"
        )
    wanted = [torch.cat(values) for values in zip(*alone, strict=True)]
    # Branches are read at their own lengths and their caches merged, whatever a padded prompt would do.
    parts = [Reading(model, [prompt]) for prompt in (long, short)]
    try:
        merged = caches.merge([part.cache for part in parts])
    except ValueError:  # layers of a kind of their own
        return Padding.CHANGES
    together = Reading(model, [long, short], merged)
    if caches.has_no_time_axis(merged):
        together.mask = None
    if not alike(model, together.step(after), wanted[1]):
        return Padding.CHANGES
    if model.has_recurrent_state:
        return Padding.IN_CACHE
    padded = Reading(model, [long, short])
    exact = alike(model, padded.logits, wanted[0]) and alike(model, padded.step(after), wanted[1])
    return Padding.EXACT if exact else Padding.IN_CACHE


def _on_sources(model: Any, long: list[int], short: list[int], after: list[list[int]]) -> Padding:
    """The same for an encoder, whose sources are padded on the right."""

    def read(sources: Sequence[Sequence[int]]) -> Tensor:
        width = max(map(len, sources))
        device = model.device
        ids = torch.tensor([[*source, *([0] * (width - len(source)))] for source in sources], device=device)
        mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sources], device=device)
        inputs = {"encoder_outputs": model.encode(ids, mask), "attention_mask": mask}
        decoder = torch.tensor([after[0]] * len(sources), device=device)
        cache = caches.new_cache(model.base)
        logits = model.read(decoder, cache, mask=None, positions=None, first=True, inputs=inputs)
        return logits[:, -1].float()

    wanted = torch.cat([read([long]), read([short])])
    return Padding.EXACT if alike(model, read([long, short]), wanted) else Padding.CHANGES


def alike(model: Any, found: Tensor, wanted: Tensor) -> bool:
    """Whether two readings of the same rows (R, V) differ by rounding alone."""
    # Half precision rounds by a percent or two behind many layers; padding that counts changes far more.
    allowed = 1e-3 if model.base.dtype in (torch.float32, torch.float64) else 0.08
    wanted = wanted - wanted.mean(-1, keepdim=True)
    difference = (found - found.mean(-1, keepdim=True) - wanted).norm(dim=-1)
    return bool((difference <= allowed * wanted.norm(dim=-1) + 1e-5).all())
