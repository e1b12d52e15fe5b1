"""A masked diffusion model with guided logits, for pipelines and loops that call ``model(ids, …).logits``."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from textguide.diffusion.canvas import Canvas
from textguide.diffusion.denoisers import Denoiser, denoiser
from textguide.diffusion.guiding import Guide, checked_guidance
from textguide.step.effect import Effect


class GuidedDenoiser(torch.nn.Module):
    """Replaces a masked diffusion model in an existing loop, and returns guided log-probabilities.

    The loop keeps its own schedule, order and temperature. It may pass the canvas as a window that grows by blocks, as
    diffusers' ``LLaDA2Pipeline`` does. Positions that are not masked when a text begins are its prompt. A canvas that
    does not continue the last one begins a new batch. Filled positions are guided like masked ones, so that a loop that
    edits them does so under guidance.

    Args:
        model: the model that the loop runs, or its :class:`~textguide.diffusion.Denoiser`, which does not change.
        tokenizer: its tokenizer.
        guidance: as for :func:`textguide.diffusion.generate`, except that particles are not supported.
        kind, mask_id, probe: as for :func:`textguide.diffusion.denoiser`. The model is called with a two-dimensional
            attention mask, as the loop calls it, so that ``kind`` only determines whether logits are shifted.
        models: further denoisers, by the names that branches use.

    Raises:
        ValueError: an argument has a value that cannot work.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        guidance: Any,
        *,
        kind: str | None = None,
        mask_id: int | None = None,
        models: Mapping[str, Any] | None = None,
        probe: bool = True,
    ) -> None:
        super().__init__()
        self._reader: Denoiser = copy.copy(denoiser(model, tokenizer, kind=kind, mask_id=mask_id, probe=probe))
        self._reader.block_size = None  # the loop's model knows its own blocks
        self.model = self._reader.model
        self.config = getattr(self.model, "config", None)
        self._guidance = checked_guidance(guidance)
        self._models = dict(models or {})
        self._guide: Guide | None = None
        self._canvas: Canvas | None = None

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self._reader.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's weights."""
        return next(iter(self.model.parameters())).dtype

    @property
    def effect(self) -> Effect | None:
        """What guidance did in the current batch; None before the first call."""
        return None if self._guide is None else self._guide.meter.summary()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, **other: Any
    ) -> Any:
        """Run the model under guidance.

        Args:
            input_ids: token ids of the canvas, (B, L).
            attention_mask: (B, L), 1 for real tokens; None: there is no padding.
            position_ids: passed to the model if no guidance acts.

        Returns:
            An object with ``logits`` (B, L, V), guided at every position that was masked when it first appeared.

        Raises:
            ValueError: the loop passes an argument that guidance does not support.
        """
        extra = {name: value for name, value in other.items() if value is not None and value is not False}
        if extra:
            raise ValueError(
                f"{next(iter(extra))}= does not work with guidance, which reads whole canvases; leave it out"
            )
        attention = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if attention.dim() != 2:
            raise ValueError(f"attention_mask has {attention.dim()} dimensions; pass (B, L), 1 for real tokens")
        attention = attention.bool()
        canvas, guide = self._at(input_ids, attention)
        if guide.is_neutral or not canvas.target.any():
            arguments: dict[str, Tensor] = {}
            if attention_mask is not None:
                arguments["attention_mask"] = attention_mask
            if position_ids is not None:
                arguments["position_ids"] = position_ids
            with torch.no_grad():
                return self.model(input_ids, **arguments)
        if self._reader.shifted:
            raise ValueError("this model's logits are shifted by one; use MaskedDiffusionCFGHook in its own loop")
        rows = torch.arange(len(canvas), device=input_ids.device)
        with _recorded_outputs(self.model) as outputs:
            guided = guide.distributions(canvas, rows, canvas.target).guided
        # The first rows of the first pass are the canvas itself; guidance does not change the logits of its prompt.
        logits = outputs[0].logits[: len(canvas), : input_ids.shape[1]].clone()
        logits[canvas.target] = guided.to(logits.dtype)
        return SimpleNamespace(logits=logits)

    def _at(self, ids: Tensor, attention: Tensor) -> tuple[Canvas, Guide]:
        """The canvas as it is now, and its guide."""
        masked = (ids == self._reader.mask_id) & attention
        old = self._canvas
        if old is not None and self._continues(old, ids, masked):
            if old.ids.shape == ids.shape:
                old.ids = ids
                assert self._guide is not None
                return old, self._guide
            width = old.ids.shape[1]
            target = masked.clone()
            target[:, :width] = old.target
        else:
            target = masked
        start = ids.masked_fill(target, self._reader.mask_id)
        canvas = Canvas(start, attention, attention & ~target, target, torch.where(target, 0, -1))
        guide = Guide(self._reader, self._guidance, canvas, models=self._models)
        canvas.ids = ids
        self._canvas, self._guide = canvas, guide
        return canvas, guide

    def _continues(self, old: Canvas, ids: Tensor, masked: Tensor) -> bool:
        width = old.ids.shape[1]
        if len(ids) != len(old) or ids.shape[1] < width:
            return False
        same = (ids[:, :width] == old.ids) | old.target
        emptied = masked[:, :width] & (old.ids != self._reader.mask_id)
        return bool(same.all()) and not bool(emptied.any())


@contextmanager
def _recorded_outputs(model: torch.nn.Module) -> Iterator[list[Any]]:
    """A list that receives the output of every pass of the model while the block runs."""
    outputs: list[Any] = []
    handle = model.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


@contextmanager
def guided_pipeline(
    pipeline: Any, guidance: Any, *, models: Mapping[str, Any] | None = None, probe: bool = True
) -> Iterator[Any]:
    """Guide the model of a text pipeline of diffusers (``LLaDA2Pipeline``) inside a ``with`` block.

    Args:
        pipeline: the pipeline; its model is restored when the block ends.
        guidance, models, probe: as for :class:`GuidedDenoiser`.

    Raises:
        ValueError: the canvas has no masks (``DiffusionGemmaPipeline``), or the guidance cannot be used.

    Example:
        >>> with textguide.logits_processors.guided_pipeline(pipe, "cfg:scale=1.5") as guided:
        ...     guided("Why is the sky blue?", gen_length=64)
    """
    model = pipeline.model
    guided = GuidedDenoiser(
        model,
        getattr(pipeline, "tokenizer", None),
        guidance,
        kind="llada",
        mask_id=getattr(pipeline, "mask_token_id", None),
        models=models,
        probe=probe,
    )
    pipeline.model = guided
    try:
        yield pipeline
    finally:
        pipeline.model = model
